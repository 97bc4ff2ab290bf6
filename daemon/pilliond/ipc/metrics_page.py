"""The metrics page: counters and histograms in shared memory, in a fixed layout. Hot path.

The serving process adds to it in bulk, every few hundred acts or every tick. The control process reads it on a scrape.
Each cell is an aligned unsigned 64-bit number with one writer, so no lock is needed.
"""

from __future__ import annotations

import mmap
import os
from enum import IntEnum
from itertools import count
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pillion_protocol import BatchClose, ErrorCode
from pilliond.limits import VERSION_CELLS_MAX

LATENCY_BUCKETS_NS: Final = tuple(
    round(microseconds * 1_000)
    for microseconds in (
        10, 20, 35, 50, 75, 100, 150, 200, 300, 500, 750, 1_000, 1_500, 2_500, 5_000,
        10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000,
    )
)  # fmt: skip
"""Upper bucket edges, inclusive. They start at 10 µs: most of what this daemon does is faster than usual buckets."""

ROW_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096)

OUTCOMES: Final = ("ok", "fallback", *(code.value for code in ErrorCode))
"""What became of an act; the index is the offset of its cell."""


class Phase(IntEnum):
    """Where the serving process is in its life. Rule: it only ever moves down this list, and FAILED is final."""

    STARTING = 0
    WARMING = 1
    READY = 2
    DRAINING = 3
    STOPPED = 4
    FAILED = 5


_next_cell = count()


def _cells(number: int = 1) -> int:
    """The first of `number` cells that nobody else has."""
    first = next(_next_cell)
    for _ in range(number - 1):
        next(_next_cell)
    return first


class Histogram:
    """Where one histogram lies: a cell for each bucket, one for what is above them all, one for the sum."""

    def __init__(self, edges: tuple[int, ...]) -> None:
        self.edges = edges
        self.edges_array = np.array(edges, np.int64)
        self.first = _cells(len(edges) + 2)
        self.sum_cell = self.first + len(edges) + 1


class VersionCells:
    """The cells of one loaded version. Clear them before another version gets the same index."""

    def __init__(self) -> None:
        self.first = _cells(4)
        self.failures, self.late, self.non_finite, self.episodes = range(self.first, self.first + 4)
        """Acts whose run failed; whose budget ended first; whose outputs were not finite; and current episode groups."""
        self.rows = _cells()
        """Rows that the version ran."""
        self.request_duration = Histogram(LATENCY_BUCKETS_NS)
        self.inference_duration = Histogram(LATENCY_BUCKETS_NS)
        self.end = self.inference_duration.sum_cell + 1


PHASE: Final = _cells()
READY_AT_NS: Final = _cells()
SESSIONS: Final = _cells()
SESSIONS_OPENED: Final = _cells()
SESSIONS_DROPPED: Final = _cells()
EPISODES: Final = _cells()
QUEUE_ROWS: Final = _cells()
LOOP_LAG_NS: Final = _cells()
LOOP_LAG_NS_MAX: Final = _cells()
GC_PAUSES: Final = _cells()
GC_PAUSE_NS: Final = _cells()
GC_PAUSE_NS_MAX: Final = _cells()
TICK_AT_NS: Final = _cells()
SPINNING: Final = _cells()
SPUN_NS: Final = _cells()
SLOT_ACTS: Final = _cells()
SLOT_BYTES: Final = _cells()
INFERENCES: Final = _cells()
EXECUTIONS: Final = _cells()
RESENDS: Final = _cells()
BUDGETS_SENT: Final = _cells()
"""Acts whose budget counts from when they were sent; and from when they were read, because that is not known."""
BUDGETS_READ: Final = _cells()
REQUESTS: Final = _cells(len(OUTCOMES))
REFUSALS: Final = _cells(len(OUTCOMES))
BATCH_CLOSES: Final = _cells(max(BatchClose) + 1)
QUEUE_WAIT: Final = Histogram(LATENCY_BUCKETS_NS)
BATCH_ROWS: Final = Histogram(ROW_BUCKETS)
VERSIONS: Final = _cells()
VERSION_CELLS: Final = tuple(VersionCells() for _ in range(VERSION_CELLS_MAX))
"""By metrics index. Index 0 counts acts whose rows were run by more than one version."""

GAUGES: Final = (SESSIONS, EPISODES, QUEUE_ROWS, SPINNING, SLOT_BYTES)
"""Cells that are 0 while no serving process runs."""

CELLS: Final = next(_next_cell)
PAGE_BYTES: Final = CELLS * 8

_LATE: Final = ("fallback", ErrorCode.DEADLINE_EXCEEDED)

OUTCOME_OFFSETS: Final = {name: index for index, name in enumerate(OUTCOMES)}


class MetricsPage:
    """A view of the page. Owns its mapping, not the descriptor.

    What every step counts is gathered in `acts` and `batches` and goes into the page at `flush`, to be called before
    there are `SAMPLES_MAX` numbers: counted one by one it would cost a step as much as its checks do.
    """

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, PAGE_BYTES)
        self.cells = memoryview(self._map).cast("Q")
        self._array = np.frombuffer(self._map, np.uint64)
        self.acts: list[int] = []
        """Two numbers per act that ran: its time in the queue, and from its receipt to the end of its run, in ns."""
        self.batches: list[int] = []
        """Five numbers per batch that ran: its rows, why it was closed, its run time in ns, the metrics index of its
        version, and how many of its acts are in `acts`."""

    def close(self) -> None:
        self.flush()
        del self._array
        self.cells.release()
        self._map.close()

    def flush(self) -> None:
        """Adds the gathered numbers to the page."""
        if not self.batches:
            return
        acts = np.array(self.acts, np.int64).reshape(-1, 2)
        batches = np.array(self.batches, np.int64).reshape(-1, 5)
        self.acts.clear()
        self.batches.clear()
        cells = self.cells
        cells[REQUESTS] += len(acts)
        cells[EXECUTIONS] += len(batches)
        cells[INFERENCES] += int(batches[:, 0].sum())
        self._add(BATCH_CLOSES, batches[:, 1], len(BatchClose))
        self._observe(QUEUE_WAIT, acts[:, 0])
        self._observe(BATCH_ROWS, batches[:, 0])
        indices = np.repeat(batches[:, 3], batches[:, 4])
        # `np.unique` would import a module at its first call, which is a pause and needs a descriptor.
        for index in set(batches[:, 3].tolist()):
            of_version = VERSION_CELLS[index]
            runs = batches[batches[:, 3] == index]
            self.cells[of_version.rows] += int(runs[:, 0].sum())
            self._observe(of_version.request_duration, acts[indices == index, 1])
            self._observe(of_version.inference_duration, runs[:, 2])

    def _observe(self, histogram: Histogram, values: NDArray[np.int64]) -> None:
        self._add(histogram.first, np.searchsorted(histogram.edges_array, values), len(histogram.edges))
        self.cells[histogram.sum_cell] += int(values.sum())

    def _add(self, first: int, offsets: NDArray[np.int64], offset_max: int) -> None:
        counts = np.bincount(offsets, minlength=offset_max + 1)
        self._array[first : first + offset_max + 1] += counts.astype(np.uint64)

    def outcome(self, name: str, metrics_index: int = 0) -> None:
        """Counts the outcome of an act of the version with that metrics index."""
        self.cells[REQUESTS + OUTCOME_OFFSETS[name]] += 1
        if name == ErrorCode.INTERNAL:
            self.cells[VERSION_CELLS[metrics_index].failures] += 1
        elif name in _LATE:
            self.cells[VERSION_CELLS[metrics_index].late] += 1

    def clear(self, metrics_index: int) -> None:
        """Sets the cells of a metrics index to 0, for the next version that gets it."""
        self._array[VERSION_CELLS[metrics_index].first : VERSION_CELLS[metrics_index].end] = 0

    def refusal(self, name: str) -> None:
        """Counts a refused message that is not an act."""
        self.cells[REFUSALS + OUTCOME_OFFSETS[name]] += 1


def make_page() -> int:
    """Returns the descriptor of a new page, all zero. The caller owns it."""
    descriptor = os.memfd_create("pillion-metrics", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, PAGE_BYTES)
    return descriptor
