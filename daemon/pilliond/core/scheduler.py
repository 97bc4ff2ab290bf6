"""The scheduler: decides *now* which acts form a batch, and why. Pure: no clock, no socket, no waiting.

Rule 1: a batch is formed only when the engine is free, so no batch is queued behind another.
Rule 2: acts run in the order of their admission; the rows of an act stay together.
Rule 3: a batch never has more than `rows_max` rows, and never rows of two versions.
Rule 4: an act whose deadline has passed does not run.
"""

from __future__ import annotations

from collections import deque

from pillion_protocol import BatchClose
from pilliond.core.episodes import EpisodeGroup
from pilliond.limits import NEVER_NS


class Batch:
    """Acts to run together, and acts whose deadline has passed."""

    __slots__ = ("close", "expired", "groups", "rows")

    def __init__(self, groups: list[EpisodeGroup], expired: list[EpisodeGroup], rows: int, close: BatchClose) -> None:
        self.groups = groups
        self.expired = expired
        self.rows = rows
        self.close = close


class Scheduler:
    """The queue of acts that wait for the engine."""

    def __init__(self, rows_max: int, wait_ns_max: int) -> None:
        self.rows_max = rows_max
        self.rows_waiting = 0
        self._wait_ns_max = wait_ns_max
        self._waiting: deque[EpisodeGroup] = deque()
        self._lock_step_waiting = 0
        self._close_by_ns = NEVER_NS
        self._rest_is_due = False
        """Whether the queue is the rest of a batch that waited for nobody: acts of another version, or that did not fit."""

    def add(self, group: EpisodeGroup, now_ns: int, lock_step_live: int) -> bool:
        """Queues an act that was admitted at `now_ns`. If its group is queued already, the group keeps its position.

        Returns True if the batch can close now, given `lock_step_live` lock-step groups.
        """
        if not group.is_queued:
            group.is_queued = True
            self._waiting.append(group)
            self.rows_waiting += group.rows
            self._lock_step_waiting += group.session.lock_step
        if self._wait_ns_max:
            self._close_by_ns = min(self._close_by_ns, self._latest_start_ns(group, now_ns))
        return self._lock_step_waiting >= lock_step_live or self.rows_waiting >= self.rows_max

    def closes_alone(self, group: EpisodeGroup, now_ns: int, lock_step_live: int) -> bool:
        """Whether an act that was admitted at `now_ns` can run at once as a batch of its own, without being added."""
        return not self.rows_waiting and lock_step_live <= group.session.lock_step and now_ns < group.deadline_ns

    def deadline_ns(self) -> int:
        """The latest time to call `take` again; `NEVER_NS` if no batch waits for time to pass."""
        return self._close_by_ns if self._waiting else NEVER_NS

    def take(self, now_ns: int, lock_step_live: int, *, drain: bool = False) -> Batch | None:
        """Returns the batch to run now on the free engine, or None if it is better to wait."""
        if not self._waiting:
            return None
        close: BatchClose | None
        if self.rows_waiting >= self.rows_max:
            close = BatchClose.FULL
        elif self._lock_step_waiting >= lock_step_live or self._rest_is_due:
            close = BatchClose.ALL_SUBMITTED
        else:
            close = self._give_up_waiting(now_ns, drain)
        return None if close is None else self._form(now_ns, close)

    def _give_up_waiting(self, now_ns: int, drain: bool) -> BatchClose | None:
        if drain:
            return BatchClose.DRAIN
        if self._wait_ns_max == 0:
            return BatchClose.ENGINE_FREE
        return BatchClose.WAIT_ELAPSED if now_ns >= self._close_by_ns else None

    def _form(self, now_ns: int, close: BatchClose) -> Batch:
        waiting = self._waiting
        groups: list[EpisodeGroup] = []
        expired: list[EpisodeGroup] = []
        version = None
        rows = 0
        while waiting:
            group = waiting[0]
            if now_ns >= group.deadline_ns:
                expired.append(group)
            elif rows + group.rows > self.rows_max or (version is not None and group.version is not version):
                break
            else:
                version = group.version
                rows += group.rows
                groups.append(group)
            waiting.popleft()
            group.is_queued = False
            self.rows_waiting -= group.rows
            self._lock_step_waiting -= group.session.lock_step
        self._rest_is_due = bool(waiting) and close is BatchClose.ALL_SUBMITTED
        if self._wait_ns_max:
            self._close_by_ns = min((self._latest_start_ns(late, late.queued_ns) for late in waiting), default=NEVER_NS)
        return Batch(groups, expired, rows, close)

    def _latest_start_ns(self, group: EpisodeGroup, now_ns: int) -> int:
        """The time at which the batch must start: half of the remaining budget is left for the engine."""
        return min(now_ns + self._wait_ns_max, now_ns + (group.deadline_ns - now_ns) // 2)
