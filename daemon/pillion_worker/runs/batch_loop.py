"""The loop of a worker that is ready: waits for a ring, runs the batch, rings. Hot path."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Final

from pillion_worker.arena import (
    COMPLETED,
    FAILED,
    FAILURE_BYTES,
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
from pillion_worker.errors import EngineError, one_line
from pillion_worker.limits import RINGS_MAX
from pillion_worker.runs.interface import Run

Runs = Sequence[Run]
"""`runs[n]()` runs the first n rows of one memory."""

_NANOSECONDS_PER_US: Final = 1_000


class BatchLoop:
    """Runs batches in the order of their numbers, until the serving process is gone.

    `runs` holds those of each memory of the arena. It polls for the next batch for `spin_us` before it sleeps, but only if
    the last one followed within that time too: where batches come slowly, it leaves its core to others. Then `wait` waits
    for rings.
    """

    def __init__(
        self,
        arena: Arena,
        submit: int,
        complete: int,
        runs: Sequence[Runs],
        spin_us: int,
        clock: Callable[[], int] = time.monotonic_ns,
        wait: Callable[[int], int] = wait_for_rings,
    ) -> None:
        self._arena = arena
        self._submit = submit
        self._complete = complete
        self._runs = runs
        self._spin_ns = spin_us * _NANOSECONDS_PER_US if CAN_SPIN else 0
        self._clock = clock
        self._wait_for_rings = wait
        self._rung = 0
        self._finished_ns = 0
        self._is_followed_soon = False
        """Whether the last batch followed the one before it within the time to spin."""

    def run(self) -> None:
        """Returns when the serving process is gone."""
        number = 1
        while self._wait(number):
            self._run_batch(number)
            number += 1

    def _wait(self, number: int) -> bool:
        """Waits for a batch; returns False if the serving process is gone."""
        # Rings are counted, not only the cell read: a ring orders what was written before it.
        while self._rung < number:
            if self._is_followed_soon and self._spin(number) and number - self._rung < RINGS_MAX:
                break
            rings = self._wait_for_rings(self._submit)
            if not rings:
                return False
            self._rung += rings
        return True

    def _spin(self, number: int) -> bool:
        cells = self._arena.cells
        clock = self._clock
        yield_core = os.sched_yield
        until_ns = clock() + self._spin_ns
        while cells[SUBMITTED] < number:
            yield_core()
            if clock() > until_ns:
                return False
        return True

    def _run_batch(self, number: int) -> None:
        cells = self._arena.cells
        index = (number - 1) % len(self._runs)
        block = block_of(index)
        cells[block + STARTED_NS] = started_ns = self._clock()
        self._is_followed_soon = started_ns - self._finished_ns < self._spin_ns
        try:
            self._runs[cells[block + MEMORY]][cells[block + ROWS]]()
            outcome = OK
        except Exception as error:  # noqa: BLE001 - whatever an engine raises, only this batch fails
            outcome = self._fail(index, error)
        cells[block + FINISHED_NS] = self._finished_ns = self._clock()
        cells[block + OUTCOME] = outcome
        cells[COMPLETED] = number
        ring_loop(self._complete)

    def _fail(self, index: int, error: Exception) -> int:
        """Writes why a batch failed, and returns its outcome."""
        text = one_line(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {one_line(error)}"
        self._arena.cells[block_of(index) + FAILURE_BYTES] = self._arena.write_failure(index, text)
        return FAILED
