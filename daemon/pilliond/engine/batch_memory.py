"""The memory of one batch: its tensors, views of the rows of an act, and the values that are checked. Hot path."""

from __future__ import annotations

import math
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from pillion_protocol import Spec, TensorSpec
from pilliond.engine.checks.integer_ranges import RangedValues, integer_ranges, is_within, ranged_values
from pilliond.engine.checks.text_rows import TextRows

Array = NDArray[Any]

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
    """The views of the tensors of one batch. Each is made at its first use and kept: cutting a view costs as much as a copy.

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


class BatchMemory:
    """The tensors of one batch of an engine, each of shape [rows_max, …]; a strict engine may have more rows.

    The caller writes the raw bytes of n rows into `views`, runs the engine on them, and reads rows 0 to n - 1 of `outputs`.
    An engine reads and writes only this memory: never memory that a client can still write to.

    If the spec has observations of text, the new object is one that checks them too. All others do not even ask.
    """

    __slots__ = ("_checked", "_spec", "inputs", "outputs", "ranges", "replica", "states", "user", "views")

    def __new__(cls, spec: Spec, *_: object) -> Self:
        has_texts = any(tensor.is_text for tensor in spec.observation)
        kind: type[Any] = _TextBatchMemory if has_texts else cls
        made: Self = super().__new__(kind)
        return made

    def __init__(
        self,
        spec: Spec,
        inputs: list[Array],
        outputs: dict[str, Array],
        states: list[tuple[Array, Array]],
    ) -> None:
        self.inputs = inputs
        """An array for each observation of the spec."""
        self.outputs = outputs
        """Every output of the policy by name. Each run overwrites them."""
        self.states = states
        """For each state of a recurrent policy: what a run reads, and what it writes."""
        self.views = BatchViews(
            [(array.data.cast("B"), tensor.row_bytes) for array, tensor in zip(inputs, spec.observation, strict=True)],
            [(outputs[tensor.name].data.cast("B"), tensor.row_bytes) for tensor in spec.outputs],
        )
        self.user: Any = None
        """What the batch runner knows of the batch that is running in it."""
        self.replica: Any = None
        """Which of several replicas runs what it holds, see `ReplicaEngine`."""
        self.ranges = integer_ranges(spec.observation)
        """The bounds of integer observations, where the spec has any."""
        self._spec = spec
        self._checked: dict[int, tuple[list[Values], list[RangedValues]]] = {}

    @property
    def nbytes(self) -> int:
        """The bytes of its tensors."""
        states = [array for pair in self.states for array in pair]
        return sum(array.nbytes for array in [*self.inputs, *self.outputs.values(), *states])

    def is_sound(self, rows: int) -> bool:
        """Whether the observations of the first `rows` rows are finite where they must be, and integers within bounds."""
        finite, ranged = self._checked.get(rows) or self._check(rows)
        return is_finite(finite) and (not ranged or is_within(ranged))

    def _check(self, rows: int) -> tuple[list[Values], list[RangedValues]]:
        """Returns the values of the first `rows` rows that are checked, and keeps them for the next time."""
        inputs = [array[:rows] for array in self.inputs]
        finite = finite_values(self._spec.observation, inputs)
        self._checked[rows] = checked = (finite, ranged_values(self.ranges, inputs))
        return checked

    def clear(self, rows: int) -> None:
        """Fills the observations of the first `rows` rows with zeros. Rows that no act fills still run: they must be sound."""
        for array in self.inputs:
            array[:rows] = 0


class _TextBatchMemory(BatchMemory):
    """The memory of a batch with observations of text."""

    __slots__ = ("_texts",)

    def __init__(
        self,
        spec: Spec,
        inputs: list[Array],
        outputs: dict[str, Array],
        states: list[tuple[Array, Array]],
    ) -> None:
        super().__init__(spec, inputs, outputs, states)
        observed = zip(spec.observation, inputs, strict=True)
        self._texts = [TextRows(tensor, array) for tensor, array in observed if tensor.is_text]

    def is_sound(self, rows: int) -> bool:
        """As for any batch; and whether the observations of text hold text."""
        if not super().is_sound(rows):
            return False
        for texts in self._texts:  # noqa: SIM110 - a generator costs as much as the check
            if not texts.is_text(rows):
                return False
        return True


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
