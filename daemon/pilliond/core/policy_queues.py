"""The queues of several policies, as one scheduler: each policy has its own, and they take turns. Pure. Hot path.

Rule: a batch is of one policy. The policies whose batches are due run in turn, so that none waits for two batches of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pilliond.core.episodes import EpisodeGroup
    from pilliond.core.scheduler import Batch
    from pilliond.core.served_policy import ServedPolicy


class PolicyQueues:
    """Has the interface of `Scheduler`. It counts lock-step groups for each policy, so the numbers of the caller do not matter."""

    def __init__(self, policies: Sequence[ServedPolicy]) -> None:
        self._policies = list(policies)
        self._first = 0
        """The policy whose turn is next."""

    @property
    def rows_waiting(self) -> int:
        """Rows that wait, of all policies."""
        return sum(policy.scheduler.rows_waiting for policy in self._policies)

    def add(self, group: EpisodeGroup, now_ns: int, lock_step_live: int) -> bool:
        """As `Scheduler.add`, in the queue of the group's policy."""
        policy = group.session.policy
        return policy.scheduler.add(group, now_ns, policy.lock_step_live)

    def closes_alone(self, group: EpisodeGroup, now_ns: int, lock_step_live: int) -> bool:
        """As `Scheduler.closes_alone`: acts of other policies may wait, but not ones that have waited for their turn."""
        policy = group.session.policy
        return not self.rows_waiting and policy.scheduler.closes_alone(group, now_ns, policy.lock_step_live)

    def deadline_ns(self) -> int:
        """As `Scheduler.deadline_ns`: the earliest of all policies."""
        return min(policy.scheduler.deadline_ns() for policy in self._policies)

    def take(self, now_ns: int, lock_step_live: int, *, drain: bool = False) -> Batch | None:
        """As `Scheduler.take`: the batch of the next policy in turn that has one due."""
        policies = self._policies
        for index in chain(range(self._first, len(policies)), range(self._first)):
            policy = policies[index]
            batch = policy.scheduler.take(now_ns, policy.lock_step_live, drain=drain)
            if batch is not None:
                self._first = (index + 1) % len(policies)
                return batch
        return None
