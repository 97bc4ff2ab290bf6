"""The watch: rolls back what crosses a bound, and switches when the followed alias has moved."""

from __future__ import annotations

import asyncio
from typing import Final

from structlog.typing import FilteringBoundLogger

from pillion_artifacts import ArtifactError, Resolved
from pilliond.errors import SwitchError
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.rollout.probation import Fault
from pilliond.rollout.releases import Releases
from pilliond.supervision.policy_channel import PolicyChannel
from pilliond.supervision.version_table import resolved
from pilliond.traffic_split import Arm

FOLLOW_S: Final = 0.5
"""How often the alias is read. It is polled, not watched: a store may lie on a file system that reports no changes."""

JUDGE_S: Final = 1.0
"""How often the versions are judged, and the live window gets a reading."""

_DAEMON: Final = "pilliond"


class Watch:
    """Judges the stable version and the arms, and follows the alias. Owns nothing."""

    def __init__(self, channel: PolicyChannel, releases: Releases, log: FilteringBoundLogger) -> None:
        self._channel = channel
        self._releases = releases
        self._operations = releases.operations
        self._alias = releases.keeper.alias
        self._log = log
        self._settings = channel.settings.auto_rollback
        self._out_noted: set[str] = set()
        """Digests of versions that are out, and whose faults were counted."""

    async def run(self) -> None:
        """Looks until it is cancelled."""
        loop = asyncio.get_running_loop()
        judged_s = 0.0
        while True:
            if loop.time() - judged_s >= JUDGE_S:
                judged_s = loop.time()
                self._releases.window.look(self._channel.stable.metrics_index)
                await self._judge_engines()
                await self._judge_stable(judged_s)
                await self._judge_arms(judged_s)
            if self._alias.name and self._operations.current is None and self._channel.is_ready:
                await self._follow()
            await asyncio.sleep(FOLLOW_S)

    async def _judge_engines(self) -> None:
        """Takes versions whose engine is out from the new episodes, if the settings say so."""
        channel, table = self._channel, self._channel.version_table
        out = {version.digest: Fault("engine_out", why) for version in table if (why := channel.why_out(version))}
        self._out_noted &= out.keys()
        if not out or not self._settings.engine_out or not channel.is_ready:
            return
        previous = table.previous
        if channel.stable.digest in out and previous is not None and previous.digest not in out:
            await self._roll_back(channel.stable, out[channel.stable.digest])
        for arm in table.arms:
            version = table.find(arm.digest)
            if version is not None and version.digest in out:
                await self._end_failing_arm(arm, version, out[version.digest])
                return

    async def _judge_stable(self, now_s: float) -> None:
        """Rolls back if the stable version crosses a bound while it is on probation."""
        stable = self._channel.stable
        if self._channel.version_table.previous is None:
            return
        fault = self._releases.guardrails.stable_fault(stable.metrics_index, now_s)
        if fault is None:
            return
        await self._roll_back(stable, fault)

    async def _roll_back(self, stable: SealedVersion, fault: Fault) -> None:
        self._note_fault(stable, fault)
        try:
            await self._releases.roll_back(_DAEMON, f"automatic rollback: {fault.why}")
        except SwitchError as error:
            self._log.warning("auto_rollback_refused", policy=str(stable), error=str(error))

    async def _judge_arms(self, now_s: float) -> None:
        """Ends an arm that crosses a bound; its share goes back to the stable version. Ends one at most."""
        version_table = self._channel.version_table
        for arm in version_table.arms:
            version = version_table.find(arm.digest)
            if version is None:
                continue
            fault = self._releases.guardrails.arm_fault(version.digest, version.metrics_index, now_s)
            if fault is not None:
                await self._end_failing_arm(arm, version, fault)
                return

    async def _end_failing_arm(self, arm: Arm, version: SealedVersion, fault: Fault) -> None:
        self._note_fault(version, fault, arm=arm.name)
        await self._end_arm(arm, version, f"automatic rollback: {fault.why}")

    def _note_fault(self, version: SealedVersion, fault: Fault, **fields: str) -> None:
        if fault.bound == "engine_out":
            # It stays out: if it could not make way, that is tried again at the next look.
            if version.digest in self._out_noted:
                return
            self._out_noted.add(version.digest)
        self._alias.failed.add(version.digest)
        self._releases.guardrails.count(fault)
        self._log.error("auto_rollback", policy=str(version), **fields, fault=fault.bound, reason=fault.why)

    async def _end_arm(self, arm: Arm, version: SealedVersion, reason: str) -> None:
        """Takes an arm out of the route. An operation that runs is cancelled for it, as for a rollback."""
        while self._operations.current is not None:
            await self._operations.make_way(f"the end of arm {arm.name}")
        left = [each for each in self._channel.version_table.arms if each.digest != arm.digest]
        await self._operations.run(
            "route", resolved(self._channel.stable), _DAEMON, f"{arm.name} {version.version} {reason}",
            lambda operation: self._releases.set_arms(operation, left),
        )  # fmt: skip

    async def _follow(self) -> None:
        """Begins a switch if the alias has moved. It does not try a version again that failed."""
        alias, revision = self._alias, self._operations.revision
        try:
            pointer = await self._releases.keeper.read_alias()
        except ArtifactError as error:
            if alias.acted_on:
                alias.acted_on = ""
                self._log.error("alias_unreadable", alias=alias.name, error=str(error))
            return
        # A switch that began or ended while the alias was read may have moved it.
        if pointer.digest == alias.acted_on or self._operations.revision != revision:
            return
        alias.acted_on = pointer.digest
        target = Resolved(pointer.policy, pointer.version, pointer.digest)
        if target.digest == self._channel.stable.digest:
            return
        if target.digest in alias.failed:
            self._log.error("alias_not_followed", alias=alias.name, policy=str(target), error="it failed before")
            return
        self._releases.switch(target, pointer.moved_by, pointer.reason or f"{alias.name} was moved")
