"""The recurrent states of a shadow: one for each row of an episode group, from the begin of its episode. Plain; bounded."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from pilliond.engine.interface import Array
from pilliond.shadow.ring import SeenBatch
from pilliond.versions.loaded_version import Version


class Carried:
    """The rows of one group: their states, which of them are right, and the number of the next act."""

    __slots__ = ("acts", "is_whole", "states")

    def __init__(self, states: list[Array], rows: int) -> None:
        self.states = states
        self.is_whole: NDArray[np.bool_] = np.zeros(rows, bool)
        """Rows with episodes that were seen from their begin."""
        self.acts = -1

    @property
    def nbytes(self) -> int:
        return sum(state.nbytes for state in self.states) + self.is_whole.nbytes


class ShadowStates:
    """States of a version by group, at most `bytes_max` in all. Beyond that it forgets the group that was silent longest.

    Rule: a row is *whole* from an act that begins its episode until an act of its group is missing, or the row is not run.
    """

    def __init__(self, version: Version, bytes_max: int) -> None:
        self._version = version
        self._bytes_max = bytes_max
        self._bytes = 0
        self._carried: OrderedDict[tuple[int, int], Carried] = OrderedDict()

    def __len__(self) -> int:
        return len(self._carried)

    def put(self, batch: SeenBatch, wanted: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], list[Array]]:
        """Returns which of the wanted rows can be run, and the states of all rows of the batch ([rows, …] each)."""
        runnable = np.zeros_like(wanted)
        states = self._zeros(len(wanted))
        for act in batch.acts:
            if not act.is_answered:
                continue
            carried = self._of(act.group, act.rows)
            if carried.acts != act.acts:
                carried.is_whole[:] = False
            mine = slice(act.first, act.first + act.rows)
            begins = batch.steps[mine] == 0
            carried.is_whole |= begins
            carried.is_whole &= wanted[mine]
            carried.acts = act.acts + 1
            for state, kept in zip(states, carried.states, strict=True):
                kept[begins] = 0
                state[mine] = kept
            runnable[mine] = carried.is_whole
        return runnable, states

    def take(self, batch: SeenBatch, ran: NDArray[np.bool_], states: list[Array]) -> None:
        """Keeps the new states of the rows that were run ([rows that were run, …] each)."""
        of_row = np.cumsum(ran) - 1
        for act in batch.acts:
            carried = self._carried.get(act.group)
            mine = slice(act.first, act.first + act.rows)
            if carried is None or not act.is_answered:
                continue
            for kept, state in zip(carried.states, states, strict=True):
                kept[ran[mine]] = state[of_row[mine][ran[mine]]]

    def lose(self, batch: SeenBatch) -> None:
        """Forgets the states of these groups: they were not run."""
        for act in batch.acts:
            carried = self._carried.pop(act.group, None)
            if carried is not None:
                self._bytes -= carried.nbytes

    def _of(self, group: tuple[int, int], rows: int) -> Carried:
        carried = self._carried.get(group)
        if carried is None:
            carried = self._carried[group] = Carried(self._zeros(rows), rows)
            self._bytes += carried.nbytes
            while self._bytes > self._bytes_max and len(self._carried) > 1:
                self._bytes -= self._carried.popitem(last=False)[1].nbytes
        self._carried.move_to_end(group)
        return carried

    def _zeros(self, rows: int) -> list[Array]:
        """The states themselves, which blocking runs read and write, wherever the engine runs."""
        return [np.zeros((rows, *before.shape[1:]), before.dtype) for before, _ in self._version.engine.states]
