"""How long a version's batches take, per bucket of rows: learned from every batch that runs. Hot path."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

_FORGET_SHIFT: Final = 6
"""A tracker moves by at most a 64th for each batch: one outlier is nearly forgotten after some 200."""


class ServiceTimes:
    """Two trackers for each bucket: `fast` is a decayed minimum, `slow` a decayed maximum, in nanoseconds.

    An act that `fast` does not fit into its budget cannot be answered in time. A batch that takes much longer than `slow`
    hangs. Both are 0 for a bucket that never ran.
    """

    def __init__(self, buckets: Sequence[int]) -> None:
        """`buckets` are the row counts whose times are told apart, ascending; the last is at least `rows_max`."""
        self.buckets = list(buckets)
        trackers = [[0, 0] for _ in buckets]
        self._of_rows = [trackers[bisect_left(buckets, rows)] for rows in range(buckets[-1] + 1)]
        """For each row count the fast and the slow tracker of its bucket."""

    def seed(self, rows: int, fast_ns: int, slow_ns: int) -> None:
        """Sets both trackers of a bucket to what was measured before it served."""
        self._of_rows[rows][:] = fast_ns, slow_ns

    def observe(self, rows: int, ns: int) -> None:
        """Learns from a batch of `rows` rows that took `ns`."""
        trackers = self._of_rows[rows]
        fast, slow = trackers
        if not fast:
            trackers[:] = ns, ns
            return
        most = fast + (fast >> _FORGET_SHIFT) + 1
        least = slow - (slow >> _FORGET_SHIFT)
        trackers[0] = min(most, ns)
        trackers[1] = max(least, ns)

    @property
    def is_known(self) -> bool:
        """Whether any bucket has run."""
        return any(self.fast_ns(rows) for rows in self.buckets)

    def fast_ns(self, rows: int) -> int:
        """The least that `rows` rows will take."""
        return self._of_rows[rows][0]

    def slow_ns(self, rows: int) -> int:
        """The most that `rows` rows should take."""
        return self._of_rows[rows][1]
