"""Service times: how long a version's batches take, learned from every run. Hot path."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from pilliond.limits import SLOWER_FACTOR_MAX, SLOWER_NS_MAX

_FORGET_SHIFT: Final = 6
"""A tracker moves by at most a 64th of itself for each run that does not push it, however odd the run was."""


class ServiceTimes:
    """The times of one version for each bucket of rows, in ns.

    *fast* falls at once to a quicker run, and rises slowly: no run is much quicker. An act that it cannot serve in time
    cannot be served. *slow* rises at once to a slower run, as far as one run may push it, and falls slowly: nearly all runs
    are quicker. A batch starts
    early enough for it, and a run that takes many times longer hangs.
    """

    __slots__ = ("_of_rows", "_trackers", "buckets", "is_known")

    def __init__(self, buckets: Sequence[int]) -> None:
        self.buckets = list(buckets)
        self._trackers = [[0, 0] for _ in self.buckets] or [[0, 0]]
        """The fast and the slow tracker of each bucket."""
        rows_max = self.buckets[-1] if self.buckets else 0
        self._of_rows = [self._trackers[bisect_left(self.buckets, rows)] for rows in range(rows_max + 1)]
        self.is_known = False
        """Whether any run was observed."""

    def seed(self, rows: int, fast_ns: int, slow_ns: int) -> None:
        """Sets both trackers of a bucket to what was measured before it served."""
        self._of_rows[rows][:] = fast_ns, slow_ns
        self.is_known = True

    def learn(self, rows: int, p50_ns: int, p99_ns: int) -> None:
        """Sets both trackers of a bucket to what was measured inside the engine alone.

        *fast* begins with half the p50, because acts are refused by it: if it was too high, it would refuse them for ever,
        and nothing would run to correct it.
        """
        self.seed(rows, p50_ns // 2, p99_ns)

    def observe(self, rows: int, duration_ns: int) -> None:
        """Notes a run of `rows` rows."""
        trackers = self._of_rows[rows]
        fast, slow = trackers
        most = fast + (fast >> _FORGET_SHIFT) + 1 if fast else duration_ns
        least = slow - (slow >> _FORGET_SHIFT)
        trackers[0] = min(most, duration_ns)
        trackers[1] = max(least, min(duration_ns, SLOWER_FACTOR_MAX * slow + SLOWER_NS_MAX))
        self.is_known = True

    def fast_ns(self, rows: int) -> int:
        """The time of the quickest runs of so many rows; 0 if there was none."""
        return self._of_rows[rows][0]

    def slow_ns(self, rows: int) -> int:
        """The time of the slowest runs of so many rows, or of the next larger bucket that has one; 0 if there was none."""
        slow = self._of_rows[rows][1]
        if slow:
            return slow
        return next((trackers[1] for trackers in self._trackers[bisect_left(self.buckets, rows) :] if trackers[1]), 0)

    def by_bucket(self) -> list[tuple[int, int, int]]:
        """For each bucket: rows, fast and slow in ns."""
        return [(rows, fast, slow) for rows, (fast, slow) in zip(self.buckets, self._trackers, strict=False)]
