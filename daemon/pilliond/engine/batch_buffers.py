"""Views of the batch buffers: the rows of one act, and the values that must be finite. Hot path."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from pillion_protocol import TensorSpec
from pilliond.engine.interface import Array

_FEW: Final = 64
_SUMMED_BY_PYTHON: Final = "fd"

Values = memoryview | Array
"""Floats of any number of rows: a view that Python sums if they are few, else an array."""


class BatchView:
    """Byte views of some rows from `first` on, in the buffer of each observation and of each output."""

    __slots__ = ("first", "inputs", "outputs")

    def __init__(self, first: int, inputs: list[memoryview], outputs: list[memoryview]) -> None:
        self.first = first
        self.inputs = inputs
        self.outputs = outputs


class BatchViews:
    """The views of one engine's buffers. Each is made at its first use and kept: cutting a view costs as much as a copy.

    `inputs` and `outputs` hold, for each tensor, its whole buffer as bytes and the bytes of a row.
    """

    def __init__(self, inputs: list[tuple[memoryview, int]], outputs: list[tuple[memoryview, int]]) -> None:
        self._inputs = inputs
        self._outputs = outputs
        self._made: dict[tuple[int, int], BatchView] = {}
        self.other_inputs, self.other_outputs = range(1, len(inputs)), range(1, len(outputs))
        """The indices of the tensors after the first."""
        self.get = self._made.get
        """`get((first, rows))` returns that view if it exists."""

    def make(self, first: int, rows: int) -> BatchView:
        """Makes the view of `rows` rows from row `first` on."""
        view = BatchView(first, _cut(self._inputs, first, rows), _cut(self._outputs, first, rows))
        self._made[first, rows] = view
        return view


def finite_values(spec: list[TensorSpec], inputs: list[Array]) -> list[Values]:
    """The values of `inputs` (shape [rows, …] each) that must be finite, for `is_finite`."""
    return [
        _values(array.reshape(-1))
        for tensor, array in zip(spec, inputs, strict=True)
        if tensor.finite and array.dtype.kind == "f"
    ]


def is_finite(values: list[Values]) -> bool:
    """Whether all values are finite now. The caller must have silenced numpy's overflow warnings."""
    for part in values:
        # One pass, no temporary array. A sum of finite numbers is finite unless it overflows, so only then look closer.
        total = sum(part) if type(part) is memoryview else np.dot(part, part)
        if not math.isfinite(total) and not np.isfinite(part).all():
            return False
    return True


def _values(flat: Array) -> Values:
    # Python adds a few of them sooner than numpy finds the loop for it.
    return flat.data if len(flat) <= _FEW and flat.dtype.char in _SUMMED_BY_PYTHON else flat


def _cut(buffers: list[tuple[memoryview, int]], first: int, rows: int) -> list[memoryview]:
    return [view[first * size : (first + rows) * size] for view, size in buffers]
