"""The scheduler: decides *now* which acts form a batch, on which engine, and why. Pure: no clock, no socket, no waiting.

Rule 1: a batch is formed only when its engine is free, so no batch is queued behind another of the same engine.
Rule 2: the acts of a version run in the order of their admission; the rows of an act stay together.
Rule 3: a batch never has more than `rows_max` rows, and never rows of two versions.
Rule 4: an act whose deadline has passed does not run.
Rule 5: where several engines could run, the policy that has used the loop least goes first.

An engine that is busy holds up its own version only. An act of a mixed version needs several engines at once: while it
waits for them, no younger act of its policy takes one of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Final

from pillion_protocol import BatchClose
from pilliond.core.episodes import EpisodeGroup
from pilliond.limits import CLOSE_MARGIN_NS, HOPELESS_PER_TRIAL, NEVER_NS
from pilliond.versions.loaded_version import Version

_turn: Final = attrgetter("share.used_ns", "oldest_ns")


class PolicyShare:
    """What the scheduler knows of one policy: its bounds, what waits, and how much of the loop it has used."""

    __slots__ = (
        "lock_step_answered",
        "lock_step_live",
        "lock_step_running",
        "lock_step_waiting",
        "queue_rows_max",
        "rows_max",
        "rows_waiting",
        "used_ns",
        "wait_ns_max",
    )

    def __init__(self, rows_max: int, wait_ns_max: int = 0, queue_rows_max: int = NEVER_NS) -> None:
        self.rows_max = rows_max
        self.wait_ns_max = wait_ns_max
        self.queue_rows_max = queue_rows_max
        self.rows_waiting = 0
        self.lock_step_live = 0
        """Episode groups of lock-step sessions: a batch need not wait for more once each of them has acted."""
        self.lock_step_waiting = 0
        self.lock_step_running = 0
        """Those whose act runs on an engine outside the loop, and those in `lock_step_answered`."""
        self.lock_step_answered: set[EpisodeGroup] = set()
        """Those that have acted since the last batch, and were answered without one."""
        self.used_ns = 0
        """The loop's time that its inline engines have used. Only differences between policies that wait matter."""

    def note_answered(self, group: EpisodeGroup) -> None:
        """Notes that a lock-step group has acted and was answered without a batch: until the next one, none waits for it."""
        if group not in self.lock_step_answered:
            self.lock_step_answered.add(group)
            self.lock_step_running += 1
        if not self.rows_waiting and self.lock_step_running >= self.lock_step_live:
            # All have acted, and there is nothing to run: from now on they may act again.
            self.forget_all_answered()

    def forget_answered(self, group: EpisodeGroup) -> None:
        """Forgets that a group was answered: it acts again, or has ended."""
        if group in self.lock_step_answered:
            self.lock_step_answered.remove(group)
            self.lock_step_running -= 1

    def forget_all_answered(self) -> None:
        """Begins anew: whoever is to be waited for must act again."""
        self.lock_step_running -= len(self.lock_step_answered)
        self.lock_step_answered.clear()


class EngineQueue:
    """The acts that wait for the engine of one version."""

    __slots__ = (
        "again",
        "busy_until_ns",
        "deadline_ns",
        "is_due",
        "lock_step",
        "rows",
        "share",
        "version",
        "wait_until_ns",
        "waiting",
    )

    def __init__(self, version: Version, share: PolicyShare) -> None:
        self.version = version
        self.share = share
        self.waiting: deque[EpisodeGroup] = deque()
        self.again: deque[list[EpisodeGroup]] = deque()
        """Acts to run a second time, each list as a batch of its own, before those that wait."""
        self.rows = 0
        self.lock_step = 0
        """How many of its acts are of lock-step sessions."""
        self.deadline_ns = NEVER_NS
        """No act in it has an earlier deadline."""
        self.wait_until_ns = NEVER_NS
        self.is_due = False
        """Whether its acts are the rest of a batch that waited for nobody: they did not fit, or are of another version."""
        self.busy_until_ns = 0
        """When its engine will be free at the earliest, if it is busy."""

    @property
    def oldest_ns(self) -> int:
        """When its first act was admitted."""
        return (self.again[0] if self.again else self.waiting)[0].queued_ns


class Batch:
    """Acts to run together, and acts whose deadline has passed."""

    __slots__ = ("close", "expired", "groups", "rows")

    def __init__(self, groups: list[EpisodeGroup], expired: list[EpisodeGroup], rows: int, close: BatchClose) -> None:
        self.groups = groups
        self.expired = expired
        self.rows = rows
        self.close = close


class Scheduler:
    """The acts that wait for an engine, in a queue for each version."""

    def __init__(self) -> None:
        self.active: list[EngineQueue] = []
        """The queues that are not empty."""
        self._queues: dict[Version, EngineQueue] = {}
        self._is_settled = True
        """Whether everything that waits, waits for a busy engine or for time to pass."""
        self._hopeless = 0
        self._is_claimed = False
        """Whether an act of a mixed version waits for engines of which some are busy."""

    @property
    def rows_waiting(self) -> int:
        """The rows that wait, of all policies."""
        return sum(queue.rows for queue in self.active)

    # Adding

    def add(self, group: EpisodeGroup, now_ns: int) -> bool:
        """Queues an act that was admitted at `now_ns`. If its group waits for this version already, it keeps its position.

        Returns True if a batch with it can close now.
        """
        version = group.version
        session = group.session
        share = session.share
        queue = group.queue
        if queue is not None and queue.version is not version:
            self.remove(group)
            queue = None
        if queue is None:
            queue = self._queues.get(version)
            if queue is None or not queue.rows:
                queue = self._open(version, share)
            # As `_count`, which is a call more for each act.
            group.queue = queue
            queue.rows += group.rows
            share.rows_waiting += group.rows
            if session.lock_step:
                queue.lock_step += 1
                share.lock_step_waiting += 1
            queue.waiting.append(group)
        if share.lock_step_answered:
            share.forget_answered(group)
        if share.wait_ns_max:
            queue.wait_until_ns = min(queue.wait_until_ns, self._wait_until_ns(queue, group, now_ns))
        if group.deadline_ns != NEVER_NS:
            queue.deadline_ns = min(queue.deadline_ns, group.deadline_ns)
        self._is_settled = False
        if share.lock_step_waiting + share.lock_step_running < share.lock_step_live and queue.rows < share.rows_max:
            return False
        return bool(version.engine.free)

    def put_back(self, version: Version, groups: Sequence[EpisodeGroup], *, in_halves: bool) -> None:
        """Queues acts whose run failed or was lost, to run before all others: together, or each half by itself."""
        middle = len(groups) // 2 if in_halves else 0
        queue = self._queues.get(version)
        if queue is None or not queue.rows:
            queue = self._open(version, groups[0].session.share)
        for part in (groups[middle:], groups[:middle]):
            if part:
                queue.again.appendleft(list(part))
        for group in groups:
            self._count(queue, group)
            queue.deadline_ns = min(queue.deadline_ns, group.deadline_ns)
        self._is_settled = False

    def closes_alone(self, group: EpisodeGroup, now_ns: int) -> bool:
        """Whether an act that was admitted at `now_ns` can run at once as a batch of its own, without being added."""
        session = group.session
        if session.share.lock_step_live > session.lock_step or (self.active and not self._is_alone(group)):
            return False
        return now_ns < group.deadline_ns and bool(group.version.engine.free)

    def is_hopeless(self, group: EpisodeGroup, now_ns: int) -> bool:
        """Whether an act cannot be done within its budget, even at the pace of the version's fastest runs."""
        if group.deadline_ns == NEVER_NS:
            return False
        version = group.version
        begin_ns = now_ns
        if not version.engine.free:
            begin_ns = self._free_ns(version, now_ns)
        if begin_ns + version.service.fast_ns(group.rows) < group.deadline_ns:
            return False
        self._hopeless += 1
        # Now and then one is tried: if nothing ran, nothing could show that the runs are quicker by now.
        return now_ns >= group.deadline_ns or self._hopeless % HOPELESS_PER_TRIAL != 0

    def _free_ns(self, version: Version, now_ns: int) -> int:
        """When the engine of a version, which is busy, will be free at the earliest."""
        if version.engine.replicas:
            ready = [replica for replica in version.engine.replicas if replica.is_ready]
            return min((replica.free_ns(now_ns) for replica in ready), default=now_ns)
        queue = self._queues.get(version)
        return now_ns if queue is None else max(now_ns, queue.busy_until_ns)

    # Taking

    def deadline_ns(self) -> int:
        """The latest time to call `expire` and `take` again; `NEVER_NS` if nothing waits for time to pass."""
        due_ns = NEVER_NS
        for queue in self.active:
            due_ns = min(due_ns, queue.deadline_ns)
            # Where engines are claimed, the next completion decides.
            if queue.share.wait_ns_max and not self._is_claimed and queue.version.engine.free:
                due_ns = min(due_ns, self._close_by_ns(queue))
        return due_ns

    def expire(self, now_ns: int) -> Sequence[EpisodeGroup]:
        """Removes and returns the acts whose deadline has passed."""
        for queue in self.active:
            if now_ns >= queue.deadline_ns:
                return [group for each in list(self.active) for group in self._expire(each, now_ns)]
        return ()

    def _expire(self, queue: EngineQueue, now_ns: int) -> list[EpisodeGroup]:
        groups = [*queue.waiting, *(group for part in queue.again for group in part)]
        expired = [group for group in groups if now_ns >= group.deadline_ns]
        left = (group.deadline_ns for group in groups if now_ns < group.deadline_ns)
        queue.deadline_ns = min(left, default=NEVER_NS)
        for group in expired:
            self.remove(group)
        return expired

    def take(self, now_ns: int, *, drain: bool = False) -> Batch | None:
        """Returns a batch to run now on a free engine, or None if it is better to wait."""
        active = self.active
        if len(active) == 1:
            queue = active[0]
            if queue.version.engine.free:
                close = self._close(queue, now_ns, drain)
                if close is not None:
                    return self._form(queue, now_ns, close)
                self._is_claimed = False
            else:
                self._is_claimed = bool(queue.version.engine.parts) and queue.version.engine.is_ready
            self._is_settled = True
            return None
        return self._take_of_several(now_ns, drain)

    def _take_of_several(self, now_ns: int, drain: bool) -> Batch | None:
        claimed: set[object] = set()
        for queue in sorted(self.active, key=_turn):
            engine = queue.version.engine
            if claimed and not claimed.isdisjoint(engine.parts or (engine,)):
                continue
            if not engine.free:
                # For an engine that is being replaced nobody waits with another one in hand.
                if engine.is_ready:
                    claimed.update(engine.parts)
                continue
            close = self._close(queue, now_ns, drain)
            if close is not None:
                return self._form(queue, now_ns, close)
        self._is_settled = True
        self._is_claimed = bool(claimed)
        return None

    def take_all(self, version: Version) -> list[EpisodeGroup]:
        """Removes and returns everything that waits for a version, alone or with others."""
        queues = [
            queue for queue in self.active if queue.version is version or version.engine in queue.version.engine.parts
        ]
        groups = [
            group for queue in queues for group in [*queue.waiting, *(each for part in queue.again for each in part)]
        ]
        for group in groups:
            self.remove(group)
        return groups

    def has_work(self, version: Version) -> bool:
        """Whether an act waits for a version or runs on its engine."""
        engine = version.engine
        return any(memory.user is not None for memory in engine.memories) or any(
            queue.version is version or engine in queue.version.engine.parts for queue in self.active
        )

    def forget(self, version: Version) -> None:
        """Forgets an unloaded version."""
        self._queues.pop(version, None)

    # What runs

    def answered(self, group: EpisodeGroup) -> None:
        """Notes that an act was answered without a batch: no batch of its policy waits for it."""
        if group.session.lock_step:
            group.session.share.note_answered(group)
            self._is_settled = False

    def submitted(self, groups: Iterable[EpisodeGroup], version: Version, rows: int, now_ns: int) -> None:
        """Notes that acts run on an engine outside the loop since `now_ns`."""
        queue = self._queues.get(version)
        if queue is not None:
            queue.busy_until_ns = max(now_ns, queue.busy_until_ns) + version.service.fast_ns(rows)
        for group in groups:
            group.session.share.lock_step_running += group.session.lock_step

    def completed(self, groups: Iterable[EpisodeGroup]) -> None:
        """Notes that such acts run no longer."""
        for group in groups:
            group.session.share.lock_step_running -= group.session.lock_step
        self._is_settled = False

    # Inside

    def remove(self, group: EpisodeGroup) -> None:
        """Removes an act that waits."""
        queue = group.queue
        assert queue is not None
        if group in queue.waiting:
            queue.waiting.remove(group)
        else:
            for part in queue.again:
                if group in part:
                    part.remove(group)
            queue.again = deque(part for part in queue.again if part)
        self._uncount(queue, group)
        self._close_if_empty(queue)

    def _open(self, version: Version, share: PolicyShare) -> EngineQueue:
        """Returns the queue of a version, which is empty, to put an act into."""
        queue = self._queues.get(version)
        if queue is None:
            queue = self._queues[version] = EngineQueue(version, share)
        if not share.rows_waiting and self.active:
            # It was idle: time that it did not use is not saved up.
            share.used_ns = max(share.used_ns, min(each.share.used_ns for each in self.active))
        self.active.append(queue)
        queue.deadline_ns = queue.wait_until_ns = NEVER_NS
        queue.is_due = False
        return queue

    def _close_if_empty(self, queue: EngineQueue) -> None:
        if not queue.rows:
            self.active.remove(queue)
            if queue.version.engine.parts:
                # A mixed version lasts until one of its rows begins an episode.
                del self._queues[queue.version]

    def _count(self, queue: EngineQueue, group: EpisodeGroup) -> None:
        group.queue = queue
        queue.rows += group.rows
        queue.lock_step += group.session.lock_step
        queue.share.rows_waiting += group.rows
        queue.share.lock_step_waiting += group.session.lock_step

    def _uncount(self, queue: EngineQueue, group: EpisodeGroup) -> None:
        group.queue = None
        queue.rows -= group.rows
        queue.lock_step -= group.session.lock_step
        queue.share.rows_waiting -= group.rows
        queue.share.lock_step_waiting -= group.session.lock_step

    def _is_alone(self, group: EpisodeGroup) -> bool:
        """Whether nothing that waits could run before this act, or with it."""
        queue = self._queues.get(group.version)
        return self._is_settled and not self._is_claimed and group.queue is None and (queue is None or not queue.rows)

    def _close(self, queue: EngineQueue, now_ns: int, drain: bool) -> BatchClose | None:
        share = queue.share
        if queue.again:
            return BatchClose.ENGINE_FREE
        if queue.rows >= share.rows_max:
            return BatchClose.FULL
        if queue.is_due or share.lock_step_waiting + share.lock_step_running >= share.lock_step_live:
            return BatchClose.ALL_SUBMITTED
        if drain:
            return BatchClose.DRAIN
        if not share.wait_ns_max:
            return BatchClose.ENGINE_FREE
        return BatchClose.WAIT_ELAPSED if now_ns >= self._close_by_ns(queue) else None

    def _form(self, queue: EngineQueue, now_ns: int, close: BatchClose) -> Batch:
        if queue.share.lock_step_answered:
            queue.share.forget_all_answered()
        if not queue.again and now_ns < queue.deadline_ns and queue.rows <= queue.share.rows_max:
            return self._form_of_all(queue, close)
        groups, expired = self._pop_again(queue, now_ns) if queue.again else self._pop_waiting(queue, now_ns)
        for group in [*groups, *expired]:
            self._uncount(queue, group)
        self._close_if_empty(queue)
        self._note_close(queue, close)
        if queue.waiting:
            self._look_at_the_rest(queue)
        return Batch(groups, expired, sum(group.rows for group in groups), close)

    def _form_of_all(self, queue: EngineQueue, close: BatchClose) -> Batch:
        """The batch that empties its queue: the usual one."""
        groups = list(queue.waiting)
        queue.waiting.clear()
        for group in groups:
            group.queue = None
        rows, share = queue.rows, queue.share
        share.rows_waiting -= rows
        share.lock_step_waiting -= queue.lock_step
        queue.rows = queue.lock_step = 0
        self._close_if_empty(queue)
        if self.active:
            self._note_close(queue, close)
        return Batch(groups, [], rows, close)

    def _note_close(self, queue: EngineQueue, close: BatchClose) -> None:
        """What is left of a policy for whose batch nobody waited is due too."""
        queue.is_due = False
        if close is BatchClose.ALL_SUBMITTED:
            for rest in self.active:
                if rest.share is queue.share:
                    rest.is_due = True

    def _pop_again(self, queue: EngineQueue, now_ns: int) -> tuple[list[EpisodeGroup], list[EpisodeGroup]]:
        part = queue.again.popleft()
        expired = [group for group in part if now_ns >= group.deadline_ns]
        return [group for group in part if now_ns < group.deadline_ns], expired

    def _pop_waiting(self, queue: EngineQueue, now_ns: int) -> tuple[list[EpisodeGroup], list[EpisodeGroup]]:
        waiting = queue.waiting
        rows_left = queue.share.rows_max
        groups: list[EpisodeGroup] = []
        expired: list[EpisodeGroup] = []
        while waiting:
            group = waiting[0]
            if now_ns >= group.deadline_ns:
                expired.append(group)
            elif group.rows > rows_left:
                break
            else:
                rows_left -= group.rows
                groups.append(group)
            waiting.popleft()
        return groups, expired

    def _look_at_the_rest(self, queue: EngineQueue) -> None:
        """Sets the times of a queue by the acts that are left, each from its own admission."""
        if queue.deadline_ns != NEVER_NS and not queue.again:
            queue.deadline_ns = min(group.deadline_ns for group in queue.waiting)
        if queue.share.wait_ns_max:
            queue.wait_until_ns = min(self._wait_until_ns(queue, group, group.queued_ns) for group in queue.waiting)

    def _wait_until_ns(self, queue: EngineQueue, group: EpisodeGroup, now_ns: int) -> int:
        """How long an act waits for others: at most half of its budget while the version's service time is not known."""
        until_ns = now_ns + queue.share.wait_ns_max
        if queue.version.service.is_known:
            return until_ns
        return min(until_ns, now_ns + (group.deadline_ns - now_ns) // 2)

    def _close_by_ns(self, queue: EngineQueue) -> int:
        """The time at which the batch must start so that its most urgent act is done in time."""
        if queue.deadline_ns == NEVER_NS or not queue.version.service.is_known:
            return queue.wait_until_ns
        rows = min(queue.rows, queue.share.rows_max)
        return min(queue.wait_until_ns, queue.deadline_ns - queue.version.service.slow_ns(rows) - CLOSE_MARGIN_NS)
