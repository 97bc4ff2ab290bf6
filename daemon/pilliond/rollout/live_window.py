"""The live window: what the metrics page says of the live version over the last seconds, and its p99."""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pilliond.ipc.metrics_page import LATENCY_BUCKETS_NS, VERSION_CELLS, MetricsPage
from pilliond.limits import P99_ACTS_MIN

SECONDS: Final = 10
"""How far back it looks, a look a second."""


class Reading:
    """Counts of one version at one moment, or between two."""

    def __init__(self, page: MetricsPage, metrics_index: int) -> None:
        cells = page.cells
        its = VERSION_CELLS[metrics_index]
        first = its.request_duration.first
        self.metrics_index = metrics_index
        self.counts: NDArray[np.int64] = np.array(cells[first : first + len(LATENCY_BUCKETS_NS) + 1], np.int64)
        self.failures: int = cells[its.failures]
        self.late: int = cells[its.late]
        self.non_finite: int = cells[its.non_finite]

    @property
    def acts(self) -> int:
        """Acts that were run."""
        return int(self.counts.sum())

    def since(self, earlier: Reading) -> Reading:
        """What came between an earlier reading of the same version and this one."""
        between = Reading.__new__(Reading)
        between.metrics_index = self.metrics_index
        between.counts = self.counts - earlier.counts
        between.failures = self.failures - earlier.failures
        between.late = self.late - earlier.late
        between.non_finite = self.non_finite - earlier.non_finite
        return between

    def p99_ns(self) -> float | None:
        """The 99th percentile of the time from an act's receipt to its answer, straight lines between the edges of
        buckets; None of fewer than `P99_ACTS_MIN` acts."""
        if self.acts < P99_ACTS_MIN:
            return None
        cumulated = np.concatenate([[0], np.cumsum(self.counts)])
        edges = np.array([0, *LATENCY_BUCKETS_NS, 2 * LATENCY_BUCKETS_NS[-1]], np.float64)
        return float(np.interp(0.99 * self.acts, cumulated, edges))


class LiveWindow:
    """Readings of the live version of the last `SECONDS`; owns nothing. `look` is to be called every second."""

    def __init__(self, page: MetricsPage) -> None:
        self._page = page
        self._readings: deque[Reading] = deque(maxlen=SECONDS + 1)

    def look(self, metrics_index: int) -> None:
        """Takes a reading; one of another version begins the window anew."""
        if self._readings and self._readings[-1].metrics_index != metrics_index:
            self._readings.clear()
        self._readings.append(Reading(self._page, metrics_index))

    def now(self, metrics_index: int) -> Reading:
        """A reading of a version, for a later `Reading.since`."""
        return Reading(self._page, metrics_index)

    def recent(self) -> tuple[Reading, int] | None:
        """What came within the window, and over how many seconds; None where there is no window yet."""
        if len(self._readings) < 2:
            return None
        return self._readings[-1].since(self._readings[0]), len(self._readings) - 1
