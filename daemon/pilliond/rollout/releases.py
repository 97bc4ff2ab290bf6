"""Releases: the verbs. Each begins an operation: stage, switch, route, warm up, roll back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from msgspec import UNSET, UnsetType
from structlog.typing import FilteringBoundLogger

from pillion_artifacts import ArtifactError, Resolved, Store
from pilliond.errors import SwitchError
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.rollout.guardrails import Guardrails
from pilliond.rollout.live_window import LiveWindow
from pilliond.rollout.operation import Kind, Operation, Step
from pilliond.rollout.operations import Operations
from pilliond.rollout.route_keeper import RouteKeeper
from pilliond.rollout.shadow_rollout import Shadows, ShadowTarget
from pilliond.rollout.stager import Stager
from pilliond.settings.schema import Settings
from pilliond.supervision.policy_channel import PolicyChannel
from pilliond.supervision.version_table import key_of, resolved
from pilliond.traffic_split import Arm

ArmTarget = tuple[str, Resolved, float]
"""An arm that is to be: its name, its version and its share of new episodes."""


class Releases:
    """Stages, switches, routes, warms up and rolls back. Owns the operation that runs and the shadow; `close` ends both.

    `reference` is what the daemon was started to serve, `settings` are those of its policy, `numbers` numbers the operations of
    all policies.
    """

    def __init__(
        self,
        settings: Settings,
        channel: PolicyChannel,
        reference: str,
        log: FilteringBoundLogger,
        numbers: Iterator[int] | None = None,
    ) -> None:
        self.load_stall_ns = 0
        """The worst stall of the serving loop while a version was loaded there."""
        self.store = Store(Path(settings.store.path))
        self.window = LiveWindow(channel.page)
        self.stager = Stager(settings, self.store, self.window)
        self.guardrails = Guardrails(settings.auto_rollback, self.window)
        self.keeper = RouteKeeper(self.store, channel.version_table, reference, log)
        self.operations = Operations(channel.version_table, log, self._note_failure, numbers)
        self.shadows = Shadows(settings, channel, self.stager, self.keeper, log, self.operations.count_change)
        self._channel = channel
        self._log = log
        self._standby: SealedVersion | None = None
        """A version that was loaded and is not in use yet. The next load unloads it."""

    async def close(self) -> None:
        """Ends the operation that runs, and the shadow."""
        await self.operations.close()
        await self.shadows.close("the daemon ends")

    def resolve(self, version: str) -> Resolved:
        """Returns the stored version that a version, a range, an alias or a digest names; raises `ArtifactError`."""
        return self.store.resolve(f"{self._channel.stable.policy}@{version}")

    # Verbs

    def stage(self, target: Resolved, by: str, reason: str) -> Operation:
        """Begins to stage a version and to load it beside the live one; raises `BusyError`."""
        return self._begin("stage", target, by, reason)

    def switch(self, target: Resolved, by: str, reason: str) -> Operation:
        """Begins to switch to a version, which is staged first if it is not loaded; raises `BusyError`."""
        return self._begin("switch", target, by, reason)

    def route(
        self, targets: list[ArmTarget], by: str, reason: str, shadow: ShadowTarget | UnsetType = UNSET
    ) -> Operation:
        """Begins to split new episodes among these arms; the stable version gets the rest.

        `shadow` is what is to shadow the stable version; unset: what does so now. Versions that are not loaded are staged
        first. Raises `BusyError` or `SwitchError`.
        """
        stable = self._channel.stable
        self.operations.check_free()
        if any(target.digest == stable.digest for _, target, _ in targets):
            raise SwitchError(f"{stable.version} is the stable version: it has what the arms leave")
        split = ", ".join(f"{name} {target.version} {share:g}" for name, target, share in targets) or "no arms"
        if shadow is not UNSET:
            split += f"; shadow {shadow[0].version} {shadow[1]:g}" if shadow else "; no shadow"
        return self.operations.begin(
            "route", resolved(stable), by, f"{reason} ({split})".strip(),
            lambda operation: self._set_route(operation, targets, shadow, reason),
        )  # fmt: skip

    def warm_up(self, version: SealedVersion, by: str, reason: str) -> Operation:
        """Begins to run every bucket of a loaded version once; raises `BusyError`."""

        async def work(operation: Operation) -> None:
            if why := self._channel.why_out(version):
                raise SwitchError(f"its engine is out: {why}")
            operation.advance(Step.WARMING)
            warmed = await self._channel.warm(version)
            operation.stall_us = warmed.longest_ns / 1e3

        return self.operations.begin("warmup", resolved(version), by, reason, work)

    async def roll_back(self, by: str, reason: str) -> Operation:
        """Switches back to the version that was stable before, at once if it is loaded; raises `SwitchError`.

        An operation that runs is cancelled for it. Raises `BusyError` if that is a rollback: a second would undo it.
        """
        while (current := self.operations.current) is not None:
            if current.kind == "rollback":
                self.operations.check_free()
            await self.operations.make_way(f"a rollback by {by}")
        previous = self._channel.version_table.previous
        if previous is None:
            return self._begin("rollback", self.keeper.stored_previous(), by, reason)
        return await self.operations.run(
            "rollback", resolved(previous), by, reason, lambda operation: self._switch_back(operation, previous)
        )

    # Parts of operations

    async def loaded(self, operation: Operation, target: Resolved) -> SealedVersion:
        """Returns the version, which is staged and loaded first if necessary; raises `SwitchError`.

        The caller puts it to use and calls `settle`; until then the next load may unload it.
        """
        version = self._channel.version_table.find(key_of(target.digest))
        if version is None:
            return await self._load(operation, await self._stage(operation, target))
        await self._revive(operation, version)
        return version

    async def _revive(self, operation: Operation, version: SealedVersion) -> None:
        """Tries a loaded version again if its engine is out, or replicas of it are; raises `SwitchError` if it is out again."""
        if self._channel.why_out(version):
            operation.advance(Step.LOADING)
        await self._channel.retry(version)

    def settle(self, version: SealedVersion) -> None:
        """Notes that a version is in use: the next load does not unload it."""
        if version is self._standby:
            self._standby = None

    async def set_arms(self, operation: Operation, arms: list[Arm]) -> None:
        """Splits new episodes among versions that are loaded; raises `SwitchError`."""
        operation.advance(Step.SWITCHING)
        version_table = self._channel.version_table
        began = {
            version.digest: self.window.now(version.metrics_index)
            for arm in arms
            if (version := version_table.find(arm.digest)) is not None
        }
        await self._channel.route(arms)
        self.guardrails.watch_arms(began, _now_s())
        await self.keeper.record(operation)

    def _begin(self, kind: Kind, target: Resolved, by: str, reason: str) -> Operation:
        return self.operations.begin(kind, target, by, reason, lambda operation: self._bring_in(operation, target))

    def _note_failure(self, operation: Operation, is_its_fault: bool) -> None:
        if not is_its_fault:
            # The alias may have moved already. It is followed once the serving process is ready again.
            self.keeper.alias.acted_on = ""
        elif operation.kind in ("stage", "switch"):
            self.keeper.alias.failed.add(operation.digest)

    async def _bring_in(self, operation: Operation, target: Resolved) -> None:
        """Loads a version and, unless it is only to be staged, makes it the stable one."""
        version = await self.loaded(operation, target)
        operation.certificate = version.certificate
        if operation.kind == "stage":
            await self.keeper.record(operation)
            return
        # Somebody asked for it, and it loaded: an earlier failure does not count any more.
        self.keeper.alias.failed.discard(operation.digest)
        operation.advance(Step.SWITCHING)
        was = self._channel.stable
        await self.keeper.make_stable(operation)
        if version is was:
            return
        try:
            await self._switch_or_reload(operation, target, version)
        except SwitchError:
            await self.keeper.put_back(operation, was)
            raise
        except asyncio.CancelledError:
            # A daemon that ends keeps the new route: its next start serves that.
            if not self._channel.is_stopping:
                await self.keeper.put_back(operation, was)
            raise

    async def _switch_or_reload(self, operation: Operation, target: Resolved, version: SealedVersion) -> None:
        try:
            await self._switch(operation, version)
        except SwitchError:
            if self._channel.version_table.find(version.key) is not None or not self._channel.is_ready:
                raise
            # An old version beyond the bounds: it was unloaded between the look at the table and the message.
            reloaded = await self.loaded(operation, target)
            operation.advance(Step.SWITCHING)
            await self._switch(operation, reloaded)

    async def _switch(self, operation: Operation, version: SealedVersion) -> None:
        self.settle(version)
        usual_p99_ns = self.guardrails.usual_p99_ns()
        began = self.window.now(version.metrics_index)
        switched = await self._channel.switch(version)
        if operation.kind == "switch":
            self.guardrails.watch_stable(began, _now_s(), usual_p99_ns)
        else:
            self.guardrails.forget_stable()
        operation.effect_ns = switched.at_ns
        operation.effect_ms = (switched.at_ns - operation.began_ns) / 1e6
        await self.shadows.end(f"{version.version} is stable now", operation.by)
        await self.keeper.note_switched(operation, version)

    async def _switch_back(self, operation: Operation, version: SealedVersion) -> None:
        """Switches first and moves the alias then: a bad version must stop at once, even if the store cannot be written to."""
        await self._revive(operation, version)
        operation.advance(Step.SWITCHING)
        await self._switch(operation, version)
        try:
            await self.keeper.make_stable(operation)
        except ArtifactError as error:
            self._log.error(
                "alias_left_behind", alias=self.keeper.alias.name, error=str(error), **operation.log_fields("error")
            )

    async def _set_route(
        self, operation: Operation, targets: list[ArmTarget], shadow: ShadowTarget | UnsetType, reason: str
    ) -> None:
        """Sets the arms and the shadow. What may fail of the shadow comes before anything is changed."""
        shadow_process = await self.shadows.prepare(operation, shadow, self._stage)
        try:
            await self._split(operation, targets)
        except BaseException:
            if shadow_process is not None:
                await shadow_process.close()
            raise
        if shadow_process is not None:
            await self.shadows.begin(shadow_process, operation.by, reason)
        elif shadow is None:
            await self.shadows.end(reason or "an operator ended it", operation.by)

    async def _split(self, operation: Operation, targets: list[ArmTarget]) -> None:
        arms = []
        fresh = []
        try:
            for name, target, share in targets:
                version = self._channel.version_table.find(key_of(target.digest))
                if version is None:
                    version = await self._load(operation, await self._stage(operation, target))
                    fresh.append(version)
                await self._revive(operation, version)
                self._standby = None
                arms.append(Arm(name, version.key, share))
            await self.set_arms(operation, arms)
        except BaseException:
            for version in fresh:
                self._channel.unload(version)
            raise

    async def _stage(self, operation: Operation, target: Resolved) -> SealedVersion:
        return await self.stager.stage(operation, target, self._channel.stable.metrics_index)

    async def _load(self, operation: Operation, version: SealedVersion) -> SealedVersion:
        operation.advance(Step.LOADING)
        if self._standby is not None:
            self._channel.unload(self._standby)
        try:
            loaded = await self._channel.load(version)
        except BaseException:
            version.close()
            raise
        self._standby = version
        operation.load_ms = loaded.load_ns / 1e6
        operation.stall_us = loaded.stall_ns / 1e3
        self.load_stall_ns = max(self.load_stall_ns, loaded.stall_ns)
        return version


def _now_s() -> float:
    return asyncio.get_running_loop().time()
