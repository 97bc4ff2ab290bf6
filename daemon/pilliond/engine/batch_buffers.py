"""BatchViews: where an act's rows lie in the buffers of a batch, and what of a batch must be finite. Hot path."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from pillion_protocol import TensorSpec
from pilliond.engine.interface import Array

_FEW: Final = 64
_SUMMED_BY_PYTHON: Final = "fd"

Values = memoryview | Array
"""Floats in a row, of any number of rows: a view that Python reads where they are few, else an array."""


class BatchView:
    """Views of the bytes of some rows from `first` on: of each observation's buffer, and of each output's."""

    __slots__ = ("first", "inputs", "outputs")

    def __init__(self, first: int, inputs: list[memoryview], outputs: list[memoryview]) -> None:
        self.first = first
        self.inputs = inputs
        self.outputs = outputs


class BatchViews:
    """The views in the buffers of one engine, each made when it is first asked for: to cut a view costs what a copy does.

    `inputs` and `outputs` hold for each tensor the bytes of its whole buffer, and how many of them make a row.
    """

    def __init__(self, inputs: list[tuple[memoryview, int]], outputs: list[tuple[memoryview, int]]) -> None:
        self._inputs = inputs
        self._outputs = outputs
        self._made: dict[tuple[int, int], BatchView] = {}
        self.other_inputs, self.other_outputs = range(1, len(inputs)), range(1, len(outputs))
        """The numbers of the tensors behind the first."""
        self.get = self._made.get
        """`get((first, rows))`: that view if it was made already."""

    def make(self, first: int, rows: int) -> BatchView:
        """The view of `rows` rows from row `first` on."""
        view = BatchView(first, _cut(self._inputs, first, rows), _cut(self._outputs, first, rows))
        self._made[first, rows] = view
        return view


def finite_values(spec: list[TensorSpec], inputs: list[Array]) -> list[Values]:
    """What of `inputs` ([rows, …] each) must be finite, for `is_finite`."""
    return [
        _values(array.reshape(-1))
        for tensor, array in zip(spec, inputs, strict=True)
        if tensor.finite and array.dtype.kind == "f"
    ]


def is_finite(values: list[Values]) -> bool:
    """Whether there is no NaN and no infinity among them, at this moment. The caller lets numpy overflow in silence."""
    for part in values:
        # One pass and no array made: a sum of finite numbers is finite, or it overflows, which is looked into.
        total = sum(part) if type(part) is memoryview else np.dot(part, part)
        if not math.isfinite(total) and not np.isfinite(part).all():
            return False
    return True


def _values(flat: Array) -> Values:
    # Python adds a few of them sooner than numpy finds the loop for it.
    return flat.data if len(flat) <= _FEW and flat.dtype.char in _SUMMED_BY_PYTHON else flat


def _cut(buffers: list[tuple[memoryview, int]], first: int, rows: int) -> list[memoryview]:
    return [view[first * size : (first + rows) * size] for view, size in buffers]
