"""The live window: counts and p99 of the live version over the last seconds, from the metrics page."""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pilliond.ipc.metrics_page import LATENCY_BUCKETS_NS, VERSION_CELLS, MetricsPage
from pilliond.limits import P99_ACTS_MIN

SECONDS: Final = 10
"""Length of the window, with one reading per second."""


class Reading:
    """Counts of one version: since its serving process started, or between two moments."""

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
        """Acts that the engine ran."""
        return int(self.counts.sum())

    def since(self, earlier: Reading) -> Reading:
        """Returns the counts between an earlier reading of the same version and this one."""
        between = Reading.__new__(Reading)
        between.metrics_index = self.metrics_index
        between.counts = self.counts - earlier.counts
        between.failures = self.failures - earlier.failures
        between.late = self.late - earlier.late
        between.non_finite = self.non_finite - earlier.non_finite
        return between

    def p99_ns(self) -> float | None:
        """Returns the 99th percentile of the time from an act's receipt to its answer.

        Linearly interpolated between bucket edges; None for fewer than `P99_ACTS_MIN` acts.
        """
        if self.acts < P99_ACTS_MIN:
            return None
        cumulated = np.concatenate([[0], np.cumsum(self.counts)])
        edges = np.array([0, *LATENCY_BUCKETS_NS, 2 * LATENCY_BUCKETS_NS[-1]], np.float64)
        return float(np.interp(0.99 * self.acts, cumulated, edges))


class LiveWindow:
    """Readings of the live version over the last `SECONDS`. Owns nothing. The caller calls `look` every second."""

    def __init__(self, page: MetricsPage) -> None:
        self._page = page
        self._readings: deque[Reading] = deque(maxlen=SECONDS + 1)

    def look(self, metrics_index: int) -> None:
        """Takes a reading. A reading of another version begins the window anew."""
        if self._readings and self._readings[-1].metrics_index != metrics_index:
            self._readings.clear()
        self._readings.append(Reading(self._page, metrics_index))

    def now(self, metrics_index: int) -> Reading:
        """Returns a reading of any version, for a later `Reading.since`."""
        return Reading(self._page, metrics_index)

    def recent(self) -> tuple[Reading, int] | None:
        """Returns the counts within the window and its length in seconds; None for fewer than two readings."""
        if len(self._readings) < 2:
            return None
        return self._readings[-1].since(self._readings[0]), len(self._readings) - 1
