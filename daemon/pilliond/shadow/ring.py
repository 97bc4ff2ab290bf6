"""The reading side of the ring: returns the batches that the live version answered, one after the other, as arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pillion_protocol import Spec
from pilliond.engine.interface import Array
from pilliond.ipc import shadow_page as cell
from pilliond.ipc.shadow_page import ACT_HEAD, ANSWERED, BATCH_HEAD, DRAWN, ShadowPage

_PAGE: Final = 4_096


class RingError(Exception):
    """What lies in the ring is no batch: a bug, or somebody else wrote there."""


class SeenAct(msgspec.Struct, frozen=True):
    """An act of a batch: rows `first` to `first + rows - 1`."""

    group: tuple[int, int]
    """The episode group: the epoch of the serving process, and the number of the group there."""
    acts: int
    """Acts of the group that were run before."""
    first: int
    rows: int
    is_answered: bool
    is_drawn: bool


class SeenBatch(msgspec.Struct, frozen=True):
    """A batch that was answered. The arrays are views of the ring, until `ShadowRing.release`."""

    acts: list[SeenAct]
    seeds: NDArray[np.uint64]
    steps: NDArray[np.uint64]
    """For each row, how many acts of its episode were run before. 0: the episode begins with this act."""
    is_live: NDArray[np.bool_]
    """Which rows the live version answered."""
    observations: list[Array]
    outputs: list[Array]


class ShadowRing:
    """Reads the batches of a page. There is one reader."""

    def __init__(self, page: ShadowPage, spec: Spec) -> None:
        self._page = page
        self._spec = spec
        self._read: int = page.cells[cell.READ]
        self._size = 0
        self._allocate()

    def _allocate(self) -> None:
        """Makes the kernel allocate the whole ring, so that the serving process, which writes from READY on, need not wait."""
        ring = self._page.ring
        for at in range(0, self._page.ring_bytes, _PAGE):
            ring[at] = 0

    def next(self) -> SeenBatch | None:
        """Returns the next batch, or None if none waits; raises `RingError`. The batch stays in the ring until `release`."""
        waiting = self._page.cells[cell.WRITTEN] - self._read
        at = self._read % self._page.ring_bytes
        if waiting and not int.from_bytes(self._page.ring[at : at + 8], "little"):
            self._move(self._page.ring_bytes - at)
            return self.next()
        if not waiting:
            return None
        self._size, epoch, rows, acts = BATCH_HEAD.unpack_from(self._page.ring, at)
        if not BATCH_HEAD.size <= self._size <= min(waiting, self._page.ring_bytes - at):
            raise RingError(f"the ring holds a batch of {self._size} bytes where {waiting} wait")
        return self._batch(at + BATCH_HEAD.size, epoch, rows, acts)

    def release(self) -> None:
        """Frees the space of the last batch."""
        self._move(self._size)

    def _move(self, size: int) -> None:
        self._read += size
        self._page.cells[cell.READ] = self._read

    def _batch(self, at: int, epoch: int, rows: int, acts: int) -> SeenBatch:
        seen = list(self._acts(at, epoch, acts))
        if sum(act.rows for act in seen) != rows:
            raise RingError(f"the acts of a batch of {rows} rows have {sum(act.rows for act in seen)}")
        at += acts * ACT_HEAD.size
        seeds, at = self._array(at, "uint64", (rows,))
        started_at, at = self._array(at, "uint64", (rows,))
        is_live, at = self._array(at, "bool", (rows,))
        tensors = []
        for tensor in [*self._spec.observation, *self._spec.outputs]:
            array, at = self._array(at, tensor.dtype, (rows, *tensor.shape))
            tensors.append(array)
        steps = np.repeat(np.array([act.acts for act in seen], np.uint64), [act.rows for act in seen]) - started_at
        count = len(self._spec.observation)
        return SeenBatch(seen, seeds, steps, is_live, tensors[:count], tensors[count:])

    def _acts(self, at: int, epoch: int, acts: int) -> Iterator[SeenAct]:
        first = 0
        for _ in range(acts):
            group, before, rows, marks = ACT_HEAD.unpack_from(self._page.ring, at)
            yield SeenAct((epoch, group), before, first, rows, bool(marks & ANSWERED), bool(marks & DRAWN))
            at += ACT_HEAD.size
            first += rows

    def _array(self, at: int, dtype: str, shape: tuple[int, ...]) -> tuple[Array, int]:
        array: Array = np.ndarray(shape, dtype, self._page.ring, at)
        return array, at + array.nbytes
