"""The scheduler: decides *now* which acts form a batch, and why. Pure: no clock, no socket, no waiting.

Rule 1: a batch is formed only when the engine is free, so none is ever queued behind another.
Rule 2: acts go in the order of their admission; an act's rows stay together.
Rule 3: a batch never holds more than `rows_max` rows, and never those of two versions.
Rule 4: an act whose deadline has passed is not run.
"""

from __future__ import annotations

from collections import deque

from pillion_protocol import BatchClose
from pilliond.core.episodes import EpisodeGroup
from pilliond.limits import NEVER_NS


class Batch:
    """Acts to be run together, and acts that are too late to be run."""

    __slots__ = ("close", "expired", "groups", "rows")

    def __init__(self, groups: list[EpisodeGroup], expired: list[EpisodeGroup], rows: int, close: BatchClose) -> None:
        self.groups = groups
        self.expired = expired
        self.rows = rows
        self.close = close


class Scheduler:
    """Acts that wait for the engine."""

    def __init__(self, rows_max: int, wait_ns_max: int) -> None:
        self.rows_max = rows_max
        self.rows_waiting = 0
        self._wait_ns_max = wait_ns_max
        self._waiting: deque[EpisodeGroup] = deque()
        self._lock_step_waiting = 0
        self._close_by_ns = NEVER_NS
        self._rest_is_due = False
        """Whether what waits was left of a batch that waited for nobody: it holds another version, or did not fit."""

    def add(self, group: EpisodeGroup, now_ns: int, lock_step_live: int) -> bool:
        """Takes an act that was admitted at `now_ns`; one whose handle waits already keeps its turn in the queue.

        Tells whether the batch need not wait for more, where `lock_step_live` handles are in lock-step.
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
        """Whether an act that was admitted at `now_ns` is a batch by itself, at once: then it need not be added."""
        return not self.rows_waiting and lock_step_live <= group.session.lock_step and now_ns < group.deadline_ns

    def deadline_ns(self) -> int:
        """When `take` must be asked again at the latest; `NEVER_NS` where nothing waits for time to pass."""
        return self._close_by_ns if self._waiting else NEVER_NS

    def take(self, now_ns: int, lock_step_live: int, *, drain: bool = False) -> Batch | None:
        """The batch to run now on the free engine, or None where it is better to wait."""
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
        """The end of the batch's wait; half of what is left of a budget is kept for the engine."""
        return min(now_ns + self._wait_ns_max, now_ns + (group.deadline_ns - now_ns) // 2)
