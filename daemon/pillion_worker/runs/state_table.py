"""The recurrent states of a version that runs in a worker: rows with numbers, in memory that outlives the worker. Hot path.

The serving process owns the table, a memfd that is sealed in size, and does not look into it. A batch says for each of its
rows which row of the table it reads and which one it writes. These are never the same: a run that fails, whose answer is
dropped, or whose worker dies has changed no state that counts.

The memfd has far more room than is ever used: only what a run has written takes memory.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pillion_worker.errors import EngineError
from pillion_worker.tensors import Array, State, TensorMemory, round_up, row_bytes

Numbers = NDArray[np.int64]

START: Final = 0
"""The number that stands for the begin of an episode, which is zeros. No row has it."""

IN_ARENA: Final = -1
"""In place of a batch's first number: its states lie in the arena, as those of golden pairs do."""

_ALIGNMENT_BYTES: Final = 64
FIRST_ROWS: Final = 64


class StateLayout:
    """Where the states of a row lie: row n begins at byte `n * row_bytes`, each of its states at a multiple of 64."""

    def __init__(self, states: Sequence[State]) -> None:
        self.offsets: list[int] = []
        at = 0
        for state in states:
            self.offsets.append(at)
            at += round_up(row_bytes(state.dtype, state.shape), _ALIGNMENT_BYTES)
        self.row_bytes = at


def table_rows(rows_max: int) -> int:
    """How many rows the memory of a table has for those with the numbers 1 to `rows_max`: mappings double until it is enough."""
    rows = FIRST_ROWS
    while rows <= rows_max:
        rows *= 2
    return rows


class StateTable:
    """The worker's mapping of a table. It maps more of it as numbers grow."""

    def __init__(self, descriptor: int, states: Sequence[State]) -> None:
        """Takes the descriptor over. Raises `EngineError` if there is no memory for the first rows."""
        self._descriptor = descriptor
        self._states = states
        self._layout = StateLayout(states)
        self._rows = 0
        self._columns: list[Array] = []
        self._map(FIRST_ROWS)

    def carry(self, runs: Sequence[Callable[[], None]], memory: TensorMemory) -> list[Callable[[], None]]:
        """Returns `runs` of that memory as they read their states from the table, and write them to it."""
        return [partial(self._run, run, rows, memory) for rows, run in enumerate(runs)]

    def _run(self, run: Callable[[], None], rows: int, memory: TensorMemory) -> None:
        reads, writes = memory.state_rows
        if reads[0] == IN_ARENA:
            run()
            return
        reads, writes = reads[:rows], writes[:rows]
        try:
            self._gather(reads, memory)
        except IndexError:
            self._map(1 + int(reads.max()))
            self._gather(reads, memory)
        run()
        try:
            self._scatter(writes, memory)
        except IndexError:
            self._map(1 + int(writes.max()))
            self._scatter(writes, memory)

    def _gather(self, numbers: Numbers, memory: TensorMemory) -> None:
        rows = len(numbers)
        starts = numbers == START
        is_start = starts.any()
        for column, (before, _) in zip(self._columns, memory.states):
            before[:rows] = column[numbers]
            if is_start:
                before[:rows][starts] = 0

    def _scatter(self, numbers: Numbers, memory: TensorMemory) -> None:
        rows = len(numbers)
        for column, (_, after) in zip(self._columns, memory.states):
            column[numbers] = after[:rows]

    def _map(self, rows_min: int) -> None:
        """Maps at least that many rows. Raises `EngineError` if there is no memory, or the table has fewer."""
        rows = max(self._rows, table_rows(rows_min - 1))
        size = rows * self._layout.row_bytes
        if size > os.fstat(self._descriptor).st_size:
            raise EngineError(f"its states have no row {rows_min - 1}")
        try:
            mapping = memoryview(mmap.mmap(self._descriptor, size))
        except OSError as error:
            raise EngineError(f"no memory is left for its recurrent states ({size} bytes): {error.strerror}") from error
        self._columns = [
            _column(mapping, rows, self._layout.row_bytes, offset, state)
            for offset, state in zip(self._layout.offsets, self._states)
        ]
        self._rows = rows


def _column(mapping: memoryview, rows: int, stride: int, offset: int, state: State) -> Array:
    """One state of every row: an array [rows, …]."""
    dtype: np.dtype[Any] = np.dtype(state.dtype)
    strides = [stride]
    inner = dtype.itemsize
    rest: list[int] = []
    for length in reversed(state.shape):
        rest.append(inner)
        inner *= length
    return np.ndarray((rows, *state.shape), dtype, mapping, offset, (*strides, *reversed(rest)))
