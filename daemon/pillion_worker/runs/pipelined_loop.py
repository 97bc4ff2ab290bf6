"""The loop of a worker whose engine runs on a device: begins the next batches while the oldest one runs. Hot path."""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from pillion_worker.arena import (
    COMPLETED,
    COMPUTE_NS,
    COPY_IN_NS,
    COPY_OUT_NS,
    FINISHED_NS,
    MEMORY,
    OK,
    OUTCOME,
    ROWS,
    STARTED_NS,
    SUBMITTED,
    Arena,
    block_of,
)
from pillion_worker.doorbell import CAN_SPIN, ring_loop, wait_for_rings
from pillion_worker.limits import RINGS_MAX
from pillion_worker.runs.batch_loop import BatchLoop
from pillion_worker.runs.interface import DeviceTimes, PipelinedRun

_LOOKS: Final = 16
"""A batch that runs for longer than the time to spin is looked after this often while its age doubles: what that adds to
its time is a few percent."""

_NO_TIMES: Final = DeviceTimes(0, 0, 0)


class PipelinedBatchLoop(BatchLoop):
    """As `BatchLoop`, with as many batches begun at once as the arena has memories.

    Batches complete in the order of their numbers, whichever of their halves fails.
    """

    def __init__(
        self,
        arena: Arena,
        submit: int,
        complete: int,
        runs: Sequence[Sequence[PipelinedRun]],
        spin_us: int,
        clock: Callable[[], int] = time.monotonic_ns,
        wait: Callable[[int], int] = wait_for_rings,
    ) -> None:
        super().__init__(arena, submit, complete, runs, spin_us, clock, wait)
        self._pipelined = runs
        self._begun: deque[tuple[int, PipelinedRun]] = deque()
        """The batches that have begun, by number, the oldest first."""

    def run(self) -> None:
        """As `BatchLoop.run`."""
        number = 1
        while self._wait(number):
            self._begin(number)
            number += 1
            while self._begun:
                if self._comes(number):
                    self._begin(number)
                    number += 1
                else:
                    self._finish()

    def _comes(self, number: int) -> bool:
        """Watches for a batch until the oldest one is done; returns whether it can begin before that."""
        if len(self._begun) == len(self._pipelined):
            return False
        began_ns = self._clock()
        oldest = self._begun[0][1]
        while not oldest.is_done():
            if self._is_submitted(number):
                return True
            self._pause(self._clock() - began_ns)
        return False

    def _is_submitted(self, number: int) -> bool:
        if self._rung >= number:
            return True
        if self._arena.cells[SUBMITTED] < number:
            return False
        if CAN_SPIN and number - self._rung < RINGS_MAX:
            return True
        # Its ring follows at once.
        self._rung += wait_for_rings(self._submit)
        return self._rung >= number

    def _pause(self, waited_ns: int) -> None:
        if waited_ns < self._spin_ns:
            os.sched_yield()
        elif select.select([self._submit], [], [], waited_ns / (_LOOKS * 1e9))[0]:
            self._rung += wait_for_rings(self._submit)

    def _begin(self, number: int) -> None:
        cells = self._arena.cells
        block = block_of((number - 1) % len(self._pipelined))
        cells[block + STARTED_NS] = started_ns = self._clock()
        self._is_followed_soon = started_ns - self._finished_ns < self._spin_ns
        try:
            run = self._pipelined[cells[block + MEMORY]][cells[block + ROWS]]
            run.begin()
        except Exception as error:  # noqa: BLE001 - whatever an engine raises, only this batch fails
            run = _Failed(error)
        self._begun.append((number, run))

    def _finish(self) -> None:
        number, run = self._begun.popleft()
        cells = self._arena.cells
        index = (number - 1) % len(self._pipelined)
        block = block_of(index)
        times, outcome = _NO_TIMES, OK
        try:
            times = run.finish()
        except Exception as error:  # noqa: BLE001 - as in `_begin`
            outcome = self._fail(index, error)
        cells[block + COPY_IN_NS], cells[block + COMPUTE_NS], cells[block + COPY_OUT_NS] = times
        cells[block + FINISHED_NS] = self._finished_ns = self._clock()
        cells[block + OUTCOME] = outcome
        cells[COMPLETED] = number
        ring_loop(self._complete)


class _Failed(PipelinedRun):
    """A batch that could not begin: it fails when its turn comes."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def begin(self) -> None:
        raise self._error

    def is_done(self) -> bool:
        return True

    def finish(self) -> DeviceTimes:
        raise self._error
