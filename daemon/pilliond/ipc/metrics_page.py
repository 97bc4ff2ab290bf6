"""The metrics page: counters and histograms in shared memory, in a fixed layout. Hot path.

The serving process adds to it in bulk, every few hundred acts or every tick. The control process reads it on a scrape.
Each cell is an aligned unsigned 64-bit number with one writer, so no lock is needed.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from enum import IntEnum
from itertools import count, islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pillion_protocol import BatchClose, ErrorCode
from pilliond.limits import POLICIES_MAX, SERVICE_BUCKETS_MAX, VERSION_CELLS_MAX, VERSION_CELLS_PER_POLICY

LATENCY_BUCKETS_NS: Final = tuple(
    round(microseconds * 1_000)
    for microseconds in (
        10, 20, 35, 50, 75, 100, 150, 200, 300, 500, 750, 1_000, 1_500, 2_500, 5_000,
        10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000,
    )
)  # fmt: skip
"""Upper bucket edges, inclusive. They start at 10 µs: most of what this daemon does is faster than usual buckets."""

DEVICE_BUCKETS_NS: Final = tuple(
    microseconds * 1_000
    for microseconds in (
        1, 2, 5, 10, 20, 35, 50, 75, 100, 150, 200, 300, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 1_000_000,
    )
)  # fmt: skip
"""Upper bucket edges, inclusive. They start at 1 µs: a small batch is copied within a few."""

DEVICE_PHASES: Final = ("copy_in", "compute", "copy_out")
"""What a device does with a batch, in the order of `DeviceTimes`."""

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
        self.device_duration = tuple(Histogram(DEVICE_BUCKETS_NS) for _ in DEVICE_PHASES)
        """By the number of the phase."""
        self.service_times = _cells(3 * SERVICE_BUCKETS_MAX)
        """For each bucket, the smallest first: its rows (0: there is no such bucket), then *fast* and *slow* in ns."""
        self.end = self.service_times + 3 * SERVICE_BUCKETS_MAX


class PolicyCells:
    """The cells of one served policy."""

    def __init__(self) -> None:
        self.sessions = _cells()
        self.episodes = _cells()
        self.requests = _cells(len(OUTCOMES))
        self.cache_hits, self.cache_misses, self.cache_rows, self.cache_bytes = (_cells() for _ in range(4))
        """Of the result cache: acts that it answered and that it did not know, and what it holds."""
        self.queue_wait = Histogram(LATENCY_BUCKETS_NS)
        self.batch_rows = Histogram(ROW_BUCKETS)


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
REFUSALS: Final = _cells(len(OUTCOMES))
BATCH_CLOSES: Final = _cells(max(BatchClose) + 1)
VERSIONS: Final = _cells()
VERSION_CELLS: Final = tuple(VersionCells() for _ in range(VERSION_CELLS_MAX))
"""By metrics index. `mixed_index` is the one for acts whose rows were run by more than one version."""

POLICY_CELLS: Final = tuple(PolicyCells() for _ in range(POLICIES_MAX))
"""By the number of a policy, in the order of the settings."""
UNKNOWN_POLICY: Final = PolicyCells()
"""Of acts that cannot be told from which policy they are: they name no session that there is."""

_GAUGES_OF_POLICIES: Final = [
    gauge for cells in POLICY_CELLS for gauge in (cells.sessions, cells.episodes, cells.cache_rows, cells.cache_bytes)
]
GAUGES: Final = (SESSIONS, EPISODES, QUEUE_ROWS, SPINNING, SLOT_BYTES, *_GAUGES_OF_POLICIES)
"""Cells that are 0 while no serving process runs."""

CELLS: Final = next(_next_cell)
PAGE_BYTES: Final = CELLS * 8

_LATE: Final = ("fallback", ErrorCode.DEADLINE_EXCEEDED)

OUTCOME_OFFSETS: Final = {name: index for index, name in enumerate(OUTCOMES)}


def policy_number(metrics_index: int) -> int:
    """Returns the number of the policy that has a metrics index."""
    return metrics_index // VERSION_CELLS_PER_POLICY


def mixed_index(metrics_index: int) -> int:
    """Returns the metrics index of acts that several versions ran, for the policy that has `metrics_index`."""
    return policy_number(metrics_index) * VERSION_CELLS_PER_POLICY


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
        self.device_batches: list[int] = []
        """Four numbers per batch that ran on a device: the metrics index of its version, and its `DeviceTimes`."""

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
        cells[EXECUTIONS] += len(batches)
        cells[INFERENCES] += int(batches[:, 0].sum())
        self._add(BATCH_CLOSES, batches[:, 1], len(BatchClose))
        indices = np.repeat(batches[:, 3], batches[:, 4])
        # `np.unique` would import a module at its first call, which is a pause and needs a descriptor.
        for index in set(batches[:, 3].tolist()):
            of_version = VERSION_CELLS[index]
            runs = batches[batches[:, 3] == index]
            self.cells[of_version.rows] += int(runs[:, 0].sum())
            self._observe(of_version.request_duration, acts[indices == index, 1])
            self._observe(of_version.inference_duration, runs[:, 2])
            of_policy = POLICY_CELLS[policy_number(index)]
            cells[of_policy.requests] += int(runs[:, 4].sum())
            self._observe(of_policy.queue_wait, acts[indices == index, 0])
            self._observe(of_policy.batch_rows, runs[:, 0])
        if self.device_batches:
            self._flush_device_batches()

    def _flush_device_batches(self) -> None:
        batches = np.array(self.device_batches, np.int64).reshape(-1, 1 + len(DEVICE_PHASES))
        self.device_batches.clear()
        for index in set(batches[:, 0].tolist()):
            runs = batches[batches[:, 0] == index]
            for phase, histogram in enumerate(VERSION_CELLS[index].device_duration):
                self._observe(histogram, runs[:, 1 + phase])

    def _observe(self, histogram: Histogram, values: NDArray[np.int64]) -> None:
        self._add(histogram.first, np.searchsorted(histogram.edges_array, values), len(histogram.edges))
        self.cells[histogram.sum_cell] += int(values.sum())

    def _add(self, first: int, offsets: NDArray[np.int64], offset_max: int) -> None:
        counts = np.bincount(offsets, minlength=offset_max + 1)
        self._array[first : first + offset_max + 1] += counts.astype(np.uint64)

    def refused_act(self, name: str, policy: int | None) -> None:
        """Counts an act that was refused before any version had it; `policy` is the number of its policy, if it is known."""
        of_policy = UNKNOWN_POLICY if policy is None else POLICY_CELLS[policy]
        self.cells[of_policy.requests + OUTCOME_OFFSETS[name]] += 1

    def outcome(self, name: str, metrics_index: int) -> None:
        """Counts the outcome of an act of the version with that metrics index."""
        self.cells[POLICY_CELLS[policy_number(metrics_index)].requests + OUTCOME_OFFSETS[name]] += 1
        if name == ErrorCode.INTERNAL:
            self.cells[VERSION_CELLS[metrics_index].failures] += 1
        elif name in _LATE:
            self.cells[VERSION_CELLS[metrics_index].late] += 1

    def clear(self, metrics_index: int) -> None:
        """Sets the cells of a metrics index to 0, for the next version that gets it."""
        self._array[VERSION_CELLS[metrics_index].first : VERSION_CELLS[metrics_index].end] = 0

    def set_service_times(self, metrics_index: int, times: Iterable[tuple[int, int, int]]) -> None:
        """Shows the service times of a version: for each bucket, rows, fast and slow in ns."""
        first = VERSION_CELLS[metrics_index].service_times
        for number, bucket in enumerate(islice(times, SERVICE_BUCKETS_MAX)):
            at = first + 3 * number
            self.cells[at], self.cells[at + 1], self.cells[at + 2] = bucket

    def service_times(self, metrics_index: int) -> list[tuple[int, int, int]]:
        """Returns rows, fast and slow in ns of each bucket of a version that has run."""
        first = VERSION_CELLS[metrics_index].service_times
        cells = self.cells[first : first + 3 * SERVICE_BUCKETS_MAX].tolist()
        triples = zip(cells[::3], cells[1::3], cells[2::3], strict=True)
        return [(rows, fast, slow) for rows, fast, slow in triples if rows and slow]

    def refusal(self, name: str) -> None:
        """Counts a refused message that is not an act."""
        self.cells[REFUSALS + OUTCOME_OFFSETS[name]] += 1


def make_page() -> int:
    """Returns the descriptor of a new page, all zero. The caller owns it."""
    descriptor = os.memfd_create("pillion-metrics", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, PAGE_BYTES)
    return descriptor
