"""The rows of a version's state table that are in use: the serving process's side of `pillion_worker.runs.state_table`.

An episode group keeps the numbers of its rows in place of their states. Each run of a row reads one number and writes
another, fresh one. If the answer counts, the group takes the new number over and gives the old one back; else the new one
is given back, and nothing has changed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pillion_worker.errors import EngineError
from pillion_worker.runs.state_table import START, Numbers, StateLayout, table_rows
from pillion_worker.tensors import LoadRequest, State

_ROOM_FACTOR: Final = 2
"""How much larger a table is than the states that may begin: a version after a switch may need more for each row."""
_GENERATION_BITS: Final = 32
"""Above these bits a number says how often the states were lost before it was given out."""
_ROW_MASK: Final = (1 << _GENERATION_BITS) - 1
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def row_numbers(numbers: Numbers) -> Numbers:
    """These as the worker knows them: it has a table of its own for each generation."""
    return numbers & _ROW_MASK


class StateRows:
    """Numbers of rows, and the memfd that the rows lie in. Owns its descriptor.

    There are `rows_max` rows: more memory than these no worker can fill, whatever it does. Raises `OSError`.
    """

    def __init__(self, states: Sequence[State], rows_max: int) -> None:
        self.row_bytes = StateLayout(states).row_bytes
        self._rows_max = rows_max
        self.descriptor = os.memfd_create("pillion-states", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, table_rows(rows_max) * self.row_bytes)
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            self.close()
            raise
        self._free: list[int] = []
        self._next = START + 1
        self._withheld: list[int] = []
        self._generation = 0
        self.written: dict[int, int] = {}
        """By the id of a memory, how many numbers its batch took. Only the engine uses it."""

    @classmethod
    def of(cls, request: LoadRequest, states_bytes_max: int) -> StateRows | None:
        """Makes the table of a policy; None if it has no state. Raises `EngineError` if there is no descriptor or no room.

        It has room for states of `states_bytes_max` bytes, and for those that batches in flight write.
        """
        if not request.states:
            return None
        flying = (request.depth + 1) * request.room
        rows_max = _ROOM_FACTOR * states_bytes_max // StateLayout(request.states).row_bytes + flying
        try:
            return cls(request.states, rows_max)
        except OSError as error:
            raise EngineError(f"there is no table for its recurrent states: {error.strerror}") from error

    @property
    def room(self) -> int:
        """How many numbers can be taken."""
        return self._rows_max - self.used

    @property
    def used(self) -> int:
        """How many numbers are taken, or withheld."""
        return (self._next & _ROW_MASK) - START - 1 - len(self._free)

    def take(self, count: int) -> Numbers:
        """Returns numbers of rows that nobody uses, shape [count], at most `room`. Those given back last come first."""
        free = self._free
        reused = min(count, len(free))
        first, self._next = self._next, self._next + count - reused
        numbers = np.empty(count, np.int64)
        numbers[reused:] = np.arange(first, self._next)
        if reused:
            numbers[:reused] = free[-reused:]
            del free[-reused:]
        return numbers

    def give(self, numbers: Numbers) -> None:
        """Takes these back, but for `START` and those whose states were lost."""
        self._free.extend(self._valid(numbers))

    def withhold(self, numbers: Numbers) -> None:
        """Takes these back, but gives them to nobody before `release_withheld`: a lost worker may still write there."""
        self._withheld.extend(self._valid(numbers))

    def release_withheld(self) -> None:
        """Gives out again what was withheld: the worker that could write there is dead."""
        self._free.extend(self._withheld)
        self._withheld.clear()

    def lose_all(self) -> None:
        """Notes that every state was lost, with the worker whose device held them."""
        self._generation += 1
        self._next = (self._generation << _GENERATION_BITS) + START + 1
        self._free.clear()
        self._withheld.clear()

    def are_lost(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Which of these stand for states that were lost."""
        lost: NDArray[np.bool_] = (numbers != START) & (numbers >> _GENERATION_BITS != self._generation)
        return lost

    @property
    def has_lost(self) -> bool:
        """Whether states were lost since the version was loaded."""
        return self._generation > 0

    def _valid(self, numbers: Numbers) -> list[int]:
        generation = self._generation
        return [number for number in numbers.tolist() if number != START and number >> _GENERATION_BITS == generation]

    def close(self) -> None:
        """Closes the table. Safe to repeat."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
