"""Service times: how long a version's batches take, learned from every run. Hot path."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

_FORGET: Final = 1 / 64
"""How far a tracker moves towards a run that does not push it: one that was odd is forgotten after some hundred runs."""


class ServiceTimes:
    """The times of one version for each bucket of rows, in ns.

    *fast* falls at once to a quicker run, and rises slowly: no run is much quicker. An act that it cannot serve in time
    cannot be served. *slow* rises at once to a slower run, and falls slowly: nearly all runs are quicker. A batch starts
    early enough for it, and a run that takes many times longer hangs.
    """

    __slots__ = ("_bucket_of", "_fast", "_slow", "buckets", "is_known")

    def __init__(self, buckets: Sequence[int]) -> None:
        self.buckets = list(buckets)
        self._bucket_of = [bisect_left(self.buckets, rows) for rows in range(self.buckets[-1] + 1)] if buckets else [0]
        self._fast = [0.0] * max(1, len(self.buckets))
        self._slow = [0.0] * max(1, len(self.buckets))
        self.is_known = False
        """Whether any run was observed."""

    def observe(self, rows: int, duration_ns: int) -> None:
        """Notes a run of `rows` rows."""
        index = self._bucket_of[rows]
        fast, slow = self._fast, self._slow
        low = fast[index]
        if duration_ns < low or not low:
            fast[index] = duration_ns
        else:
            fast[index] = low + (duration_ns - low) * _FORGET
        high = slow[index]
        slow[index] = duration_ns if duration_ns > high else high - (high - duration_ns) * _FORGET
        self.is_known = True

    def fast_ns(self, rows: int) -> int:
        """The time of the quickest runs of so many rows; 0 if there was none."""
        return int(self._fast[self._bucket_of[rows]])

    def slow_ns(self, rows: int) -> int:
        """The time of the slowest runs of so many rows, or of the next larger bucket that has one; 0 if there was none."""
        return int(next((slow for slow in self._slow[self._bucket_of[rows] :] if slow), 0))

    def by_bucket(self) -> list[tuple[int, int, int]]:
        """For each bucket: rows, fast and slow in ns."""
        return [(rows, int(self._fast[index]), int(self._slow[index])) for index, rows in enumerate(self.buckets)]
