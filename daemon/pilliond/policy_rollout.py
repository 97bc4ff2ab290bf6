"""One served policy in the control process: what changes and watches which of its versions serves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from structlog.typing import FilteringBoundLogger

from pilliond.rollout.evaluation_holds import EvaluationHolds
from pilliond.rollout.releases import Releases
from pilliond.rollout.restore import Restore
from pilliond.rollout.watch import Watch
from pilliond.supervision.policy_channel import PolicyChannel


class PolicyRollout:
    """The verbs of one policy, its evaluation holds, and the watch over its versions. No other policy notices any of it.

    `reference` is what the daemon was started to serve. `numbers` numbers the operations of all policies. At its start it brings
    back what the policy served beside its stable version; see `Restore`.
    """

    def __init__(
        self, channel: PolicyChannel, reference: str, numbers: Iterator[int], log: FilteringBoundLogger
    ) -> None:
        Restore(channel.settings, channel.version_table, log).run(reference)
        self.channel = channel
        self.releases = Releases(channel.settings, channel, reference, log, numbers)
        self.evaluations = EvaluationHolds(channel, self.releases, log)
        self._watch = Watch(channel, self.releases, log)

    async def run(self) -> None:
        """Follows the alias, judges versions and ends evaluation holds until it is cancelled; then closes `releases`."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch.run())
                tasks.create_task(self.evaluations.run())
        finally:
            await self.releases.close()
