"""Releases: what the daemon is told about versions, done one at a time: stage, switch, roll back, follow an alias.

The stable version of a policy is what the alias says that the daemon follows, where it follows one, else what its route file
says. Either is changed before the switch, so that a daemon that is killed in between serves after its restart what the
route says, and changed back where the switch fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from pillion_artifacts import ArtifactError, Resolved, Store
from pillion_artifacts.errors import StoreError
from pillion_artifacts.names import parse_reference
from pillion_artifacts.store.aliases import Alias, move_alias, previous_version, read_alias, roll_back_alias
from pillion_artifacts.store.audit_log import Action
from pillion_artifacts.store.daemon_locks import DaemonLock
from pillion_artifacts.store.routes import RouteArm
from pilliond.errors import BusyError, NotReadyError, SwitchError
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.rollout.arm_probation import ArmProbation
from pilliond.rollout.live_window import LiveWindow
from pilliond.rollout.operation import Kind, Operation, Outcome, begin_operation
from pilliond.rollout.probation import Probation
from pilliond.rollout.route_file import RouteFile
from pilliond.rollout.shadow_process import ShadowProcess
from pilliond.rollout.shadow_rollout import Shadows
from pilliond.rollout.stager import Stager
from pilliond.settings.schema import Settings
from pilliond.supervision.supervisor import Supervisor
from pilliond.traffic_split import Arm

FOLLOW_S: Final = 0.5
"""How often the alias is looked at. Its file is read, not watched: a store may lie where no change is told of."""

LOOK_S: Final = 1.0

ShadowWish = tuple[Resolved, float] | None
"""The version that is to shadow, and its share; None: none."""

OPERATIONS_KEPT: Final = 32
_SWITCHING: Final = "switching"


Work = Callable[[Operation], Coroutine[Any, Any, None]]


class Releases:
    """Owns the stager, the task of the operation that is under way, and a version that is loaded and waits for its switch.

    `reference` is what the daemon was told to serve; `followed` is its alias (`stable` of `NAME@stable`); empty: none.
    """

    def __init__(self, settings: Settings, supervisor: Supervisor, reference: str, log: Any) -> None:
        self.operations: list[Operation] = []
        self.revision = 0
        """How often anything changed; for `ETag`."""
        self.switches: dict[Outcome, int] = dict.fromkeys((Outcome.DONE, Outcome.FAILED, Outcome.CANCELLED), 0)
        self.auto_rollbacks: dict[str, int] = {}
        """How often a version was taken back, by the bound that it crossed."""
        self.load_stall_ns = 0
        """The worst stall of the serving loop while a version was loaded there."""
        self.window = LiveWindow(supervisor.page)
        self.stager = Stager(settings, self.window)
        self.store = Store(Path(settings.store.path))
        self.followed = parse_reference(reference).alias
        self._route_file = RouteFile(self.store, reference)
        self._supervisor = supervisor
        self._log = log
        self._task: asyncio.Task[None] | None = None
        self._has_begun = asyncio.Event()
        """Whether the task has: one that is cancelled before does not clean up after itself."""
        self._waiting: SealedVersion | None = None
        self._seen = supervisor.stable.digest
        self._failed: set[str] = set()
        self.shadows = Shadows(settings, supervisor, log, self.note, self._count_change)
        self._bounds = settings.auto_rollback
        self._probation: Probation | None = None
        self._arm_probation = ArmProbation(self._bounds)

    # What is asked

    @property
    def current(self) -> Operation | None:
        """The operation that is under way."""
        return self.operations[-1] if self.operations and self._task is not None else None

    def find(self, number: int) -> Operation | None:
        """An operation by its number; the last `OPERATIONS_KEPT` are kept."""
        return next((operation for operation in self.operations if operation.number == number), None)

    def resolve(self, version: str) -> Resolved:
        """The stored version that is meant by a version, a range, an alias or a digest; raises `ArtifactError`."""
        return self.store.resolve(f"{self._supervisor.stable.policy}@{version}")

    def stage(self, target: Resolved, by: str, reason: str) -> Operation:
        """Begins to stage a version and to load it beside the live one; raises `BusyError`."""
        return self._begin("stage", target, by, reason)

    def switch(self, target: Resolved, by: str, reason: str) -> Operation:
        """Begins to switch to a version, which is staged first where it is not loaded; raises `BusyError`."""
        return self._begin("switch", target, by, reason)

    def route(
        self,
        targets: list[tuple[str, Resolved, float]],
        by: str,
        reason: str,
        shadow: ShadowWish | UnsetType = UNSET,
    ) -> Operation:
        """Begins to share out new episodes: name, version and share of each arm; the stable version gets the rest.

        `shadow` is what is to shadow the stable version; unset: what does so now. Versions that are not loaded are staged
        first. Raises `BusyError` or `SwitchError`.
        """
        stable = self._supervisor.stable
        self.check_free()
        if any(target.digest == stable.digest for _, target, _ in targets):
            raise SwitchError(f"{stable.version} is the stable version: it has what the arms leave")
        shared_out = ", ".join(f"{name} {target.version} {share:g}" for name, target, share in targets) or "no arms"
        if shadow is not UNSET:
            shared_out += f"; shadow {shadow[0].version} {shadow[1]:g}" if shadow else "; no shadow"
        target = Resolved(stable.policy, stable.version, stable.digest)
        operation = self._note_begun("route", target, by, f"{reason} ({shared_out})".strip())
        self._task = asyncio.create_task(self._run(operation, self._set_route(operation, targets, shadow, reason)))
        return operation

    def warm_up(self, version: SealedVersion, by: str, reason: str) -> Operation:
        """Begins to run every bucket of a loaded version once; raises `BusyError`."""

        async def work(operation: Operation) -> None:
            operation.step = "warming"
            warmed = await self._supervisor.warm(version)
            operation.stall_us = warmed.longest_ns / 1e3

        return self.begin("warmup", _resolved(version), by, reason, work)

    async def roll_back(self, by: str, reason: str) -> Operation:
        """Goes back to the version that was stable before, at once where it is loaded; raises `SwitchError`.

        What is being staged is given up for it. Raises `BusyError` where a rollback is under way: a second would undo it.
        """
        self._check_no_rollback()
        await self.cancel(f"a rollback by {by}")
        if self._task is not None:
            await asyncio.wait([self._task])
        # Of two who waited for the same, the other may have begun.
        self._check_no_rollback()
        previous = self._supervisor.version_table.previous
        if previous is None:
            return self._begin("rollback", self._stored_previous(), by, reason)
        operation = self._note_begun("rollback", _resolved(previous), by, reason)
        operation.step = _SWITCHING
        await self._run_now(operation, self._back(operation, previous))
        return operation

    async def cancel(self, why: str) -> Operation | None:
        """Gives up what is being staged; gives the operation that was cancelled, or None."""
        while self._task is not None and not self._has_begun.is_set():
            await self._has_begun.wait()
        task, operation = self._task, self.current
        if task is None or operation is None or operation.step in (_SWITCHING, "loading", "holding"):
            return None
        task.cancel()
        await asyncio.wait([task])
        operation.end(Outcome.CANCELLED, why)
        return operation

    # Running

    async def run(self) -> None:
        """Looks at the live version and at the followed alias until it is cancelled."""
        loop = asyncio.get_running_loop()
        looked_s = 0.0
        try:
            while True:
                if loop.time() - looked_s >= LOOK_S:
                    looked_s = loop.time()
                    self.window.look(self._supervisor.stable.metrics_index)
                    await self._judge(looked_s)
                    await self._judge_arms(looked_s)
                if self.followed and self._task is None and self._supervisor.is_ready:
                    await self._follow()
                await asyncio.sleep(FOLLOW_S)
        finally:
            await self.close()

    async def _judge(self, now_s: float) -> None:
        """Takes the stable version back where it crosses a bound while it is on probation."""
        probation, stable = self._probation, self._supervisor.stable
        if probation is None or self._supervisor.version_table.previous is None:
            return
        if probation.is_over(now_s):
            self._probation = None
            return
        fault = probation.fault(self.window.now(stable.metrics_index))
        if fault is None:
            return
        kind, why = fault
        self._probation = None
        self._failed.add(stable.digest)
        self.auto_rollbacks[kind] = self.auto_rollbacks.get(kind, 0) + 1
        self._log.error("auto_rollback", policy=str(stable), fault=kind, reason=why)
        try:
            await self.roll_back("pilliond", f"taken back by itself: {why}")
        except SwitchError as error:
            self._log.warning("auto_rollback_refused", policy=str(stable), error=str(error))

    async def _judge_arms(self, now_s: float) -> None:
        """Ends an arm that crosses a bound; its share goes back to the stable version."""
        version_table = self._supervisor.version_table
        for arm in self._supervisor.version_table.arms:
            version = version_table.find(arm.digest)
            fault = version and self._arm_probation.fault(version.digest, self.window.now(version.metrics_index), now_s)
            if not version or not fault:
                continue
            kind, why = fault
            self._failed.add(version.digest)
            self.auto_rollbacks[kind] = self.auto_rollbacks.get(kind, 0) + 1
            self._log.error("auto_rollback", policy=str(version), arm=arm.name, fault=kind, reason=why)
            await self._end_arm(arm, version, f"taken back by itself: {why}")
            return

    async def _end_arm(self, arm: Arm, version: SealedVersion, reason: str) -> None:
        """What is being staged is given up for it, as for a rollback."""
        await self.cancel(f"the end of arm {arm.name}")
        if self._task is not None:
            await asyncio.wait([self._task])
        left = [each for each in self._supervisor.version_table.arms if each.digest != arm.digest]
        operation = self._note_begun(
            "route", _resolved(self._supervisor.stable), "pilliond", f"{arm.name} {version.version} {reason}"
        )
        operation.step = _SWITCHING
        await self._run_now(operation, self._set_arms(operation, left))

    async def close(self) -> None:
        """Ends what is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self.shadows.close("the daemon ends")

    def _begin(self, kind: Kind, target: Resolved, by: str, reason: str) -> Operation:
        return self.begin(kind, target, by, reason, lambda operation: self._do(operation, target))

    def begin(self, kind: Kind, target: Resolved, by: str, reason: str, work: Work) -> Operation:
        """Begins an operation that does `work`; raises `BusyError`."""
        self.check_free()
        operation = self._note_begun(kind, target, by, reason)
        self._task = asyncio.create_task(self._run(operation, work(operation)))
        return operation

    def check_free(self) -> None:
        """Raises `BusyError` while an operation is under way."""
        if self.current is not None:
            raise BusyError(f"{self.current.version} is under way ({self.current.step}): wait for it, or cancel it")

    def _check_no_rollback(self) -> None:
        if self.current is not None and self.current.kind == "rollback":
            self.check_free()

    def _note_begun(self, kind: Kind, target: Resolved, by: str, reason: str) -> Operation:
        number = self.operations[-1].number + 1 if self.operations else 1
        was = self._supervisor.stable.version
        operation = begin_operation(number, kind, target.policy, target.version, target.digest, was, by, reason)
        self.operations = [*self.operations[1 - OPERATIONS_KEPT :], operation]
        self._has_begun.clear()
        self.revision += 1
        self._log.info(f"{kind}_begun", **_for_log(operation))
        return operation

    async def _run_now(self, operation: Operation, work: Any) -> None:
        self._task = asyncio.create_task(self._run(operation, work))
        await asyncio.wait([self._task])

    async def _run(self, operation: Operation, work: Any) -> None:
        self._has_begun.set()
        try:
            await work
            operation.end(Outcome.DONE)
            self._log.info(f"{operation.kind}_done", **_for_log(operation))
        except (SwitchError, ArtifactError) as error:
            is_its_fault = operation.step != _SWITCHING and not isinstance(error, NotReadyError)
            operation.end(Outcome.FAILED, str(error))
            if not is_its_fault:
                # The alias may have been moved already: it is looked at anew, and followed where the serving process is back.
                self._seen = ""
            elif operation.kind in ("stage", "switch"):
                self._failed.add(operation.digest)
            self._log.error(f"{operation.kind}_failed", **_for_log(operation))
        except asyncio.CancelledError:
            operation.end(Outcome.CANCELLED, "it was cancelled")
            self._log.warning(f"{operation.kind}_cancelled", **_for_log(operation))
        finally:
            if operation.outcome is Outcome.RUNNING:
                operation.end(Outcome.FAILED, "a bug: see the log")
            self._task = None
            self.revision += 1
            if operation.kind in ("switch", "rollback"):
                self.switches[operation.outcome] += 1

    async def _do(self, operation: Operation, target: Resolved) -> None:
        version = await self.loaded(operation, target)
        operation.certificate = version.certificate
        if operation.kind == "stage":
            await self._note(operation)
            return
        # It was loaded, and somebody wants it: that it failed before counts no more.
        self._failed.discard(operation.digest)
        operation.step = _SWITCHING
        if version is self._supervisor.stable:
            await self._move_alias(operation)
            return
        was = self._supervisor.stable
        await self._move_alias(operation)
        try:
            await self._flip_or_reload(operation, target, version)
        except SwitchError:
            await self._put_back(operation, was)
            raise
        except asyncio.CancelledError:
            # A daemon that ends leaves the route as it was told: it goes on with that.
            if not self._supervisor.is_stopping:
                await self._put_back(operation, was)
            raise

    async def _flip_or_reload(self, operation: Operation, target: Resolved, version: SealedVersion) -> None:
        try:
            await self._flip(operation, version)
        except SwitchError:
            if self._supervisor.version_table.find(version.key) is not None or not self._supervisor.is_ready:
                raise
            # An old one, beyond the bounds: it went between the look and the order.
            await self._flip(operation, await self.loaded(operation, target))

    async def loaded(self, operation: Operation, target: Resolved) -> SealedVersion:
        """The version, staged and loaded first where it is not; the next that is loaded may take its place."""
        version = self._supervisor.version_table.find(bytes.fromhex(target.digest.removeprefix("sha256:")))
        return version or await self._load(operation, await self._stage(operation, target))

    def settle(self, version: SealedVersion) -> None:
        """A version that was loaded has found its use, and waits for none any more."""
        if version is self._waiting:
            self._waiting = None

    async def _share_out(self, operation: Operation, targets: list[tuple[str, Resolved, float]]) -> None:
        arms = []
        fresh = []
        try:
            for name, target, share in targets:
                version = self._supervisor.version_table.find(bytes.fromhex(target.digest.removeprefix("sha256:")))
                if version is None:
                    version = await self._load(operation, await self._stage(operation, target))
                    fresh.append(version)
                self._waiting = None
                arms.append(Arm(name, version.key, share))
            await self._set_arms(operation, arms)
        except BaseException:
            for version in fresh:
                self._supervisor.unload(version)
            raise

    async def _set_arms(self, operation: Operation, arms: list[Arm]) -> None:
        operation.step = _SWITCHING
        version_table = self._supervisor.version_table
        began = {
            version.digest: self.window.now(version.metrics_index)
            for arm in arms
            if (version := version_table.find(arm.digest)) is not None
        }
        await self._supervisor.route(arms)
        recent = self.window.recent()
        usual_p99_ns = recent[0].p99_ns() if recent else None
        self._arm_probation.begin(began, asyncio.get_running_loop().time(), usual_p99_ns)
        await self._note(operation)

    async def _set_route(
        self,
        operation: Operation,
        targets: list[tuple[str, Resolved, float]],
        wish: ShadowWish | UnsetType,
        reason: str,
    ) -> None:
        """The arms and the shadow: what may fail of the shadow comes before anything is changed."""
        shadow_process = await self._prepare_shadow(operation, wish)
        try:
            await self._share_out(operation, targets)
        except BaseException:
            if shadow_process is not None:
                await shadow_process.close()
            raise
        if shadow_process is not None:
            await self.shadows.begin(shadow_process, operation.by, reason)
        elif wish is None:
            await self.shadows.end(reason or "it was told to", operation.by)

    async def _prepare_shadow(self, operation: Operation, wish: ShadowWish | UnsetType) -> ShadowProcess | None:
        """A process that is ready to shadow as is wished; None where none is wished, or where one does so already."""
        if wish is UNSET or wish is None:
            return None
        target, share = wish
        current = self.shadows.current
        if current is not None and (current.digest, current.process.share) == (target.digest, share):
            return None
        version = self._supervisor.version_table.find(bytes.fromhex(target.digest.removeprefix("sha256:")))
        if version is None:
            version = await self._stage(operation, target)
        else:
            version = version.copy(await asyncio.to_thread(self._locked, target))
        operation.step = "starting the shadow"
        return await self.shadows.prepare(version, share)

    def _count_change(self) -> None:
        self.revision += 1

    async def _stage(self, operation: Operation, target: Resolved) -> SealedVersion:
        def on_step(step: str) -> None:
            operation.step = step

        lock = await asyncio.to_thread(self._locked, target)
        paused_before_s = self.stager.paused_s
        try:
            version = await self.stager.stage(target, lock, self._supervisor.stable.metrics_index, on_step)
        except BaseException:
            if lock is not None:
                lock.close()
            raise
        finally:
            operation.paused_s += self.stager.paused_s - paused_before_s
        operation.swap_impact = self.stager.swap_impact
        return version

    def _locked(self, target: Resolved) -> DaemonLock | None:
        try:
            return self.store.lock_version(f"{target.policy}@{target.digest}")[1]
        except StoreError:
            return None

    async def _load(self, operation: Operation, version: SealedVersion) -> SealedVersion:
        operation.step = "loading"
        if self._waiting is not None:
            self._supervisor.unload(self._waiting)
        try:
            loaded = await self._supervisor.load(version)
        except BaseException:
            version.close()
            raise
        self._waiting = version
        operation.load_ms = loaded.load_ns / 1e6
        operation.stall_us = loaded.stall_ns / 1e3
        self.load_stall_ns = max(self.load_stall_ns, loaded.stall_ns)
        return version

    async def _flip(self, operation: Operation, version: SealedVersion) -> None:
        self.settle(version)
        recent = self.window.recent()
        began = self.window.now(version.metrics_index)
        switched = await self._supervisor.switch(version)
        # A rollback is to what served before: that is not on probation.
        self._probation = None
        if operation.kind == "switch" and self._bounds.watch_s:
            usual_p99_ns = recent[0].p99_ns() if recent else None
            self._probation = Probation(self._bounds, began, asyncio.get_running_loop().time(), usual_p99_ns)
        operation.effect_ns = switched.at_ns
        operation.effect_ms = (switched.at_ns - operation.began_ns) / 1e6
        await self.shadows.end(f"{version.version} is stable now", operation.by)
        self._seen = version.digest
        if self.followed and self._has_other_arms():
            await self._keep("route", operation, _resolved(version), None)

    async def _back(self, operation: Operation, version: SealedVersion) -> None:
        """The switch first, the alias then: a bad version is to stop at once, whatever the store says."""
        operation.step = _SWITCHING
        await self._flip(operation, version)
        try:
            await self._move_alias(operation)
        except ArtifactError as error:
            self._log.error("alias_left_behind", alias=self.followed, error=str(error), **_for_log(operation))

    # The store

    async def _move_alias(self, operation: Operation) -> None:
        """Makes it what is stable after a restart: the alias says so, or else the route file. Raises `ArtifactError`."""
        if not self.followed:
            await self._note(operation)
            return
        moved = await asyncio.to_thread(self._moved, operation)
        self._seen = moved.digest

    def _moved(self, operation: Operation) -> Alias:
        policy, alias = operation.policy, self.followed
        by, reason = operation.by, operation.reason
        now = read_alias(self.store.root, policy, alias)
        if now.digest == operation.digest:
            return now
        if operation.kind == "rollback" and previous_version(self.store, now) == operation.version:
            return roll_back_alias(self.store, policy, alias, by=by, reason=reason)
        return move_alias(self.store, policy, alias, operation.version, expected=operation.was, by=by, reason=reason)

    async def _note(self, operation: Operation) -> None:
        """Writes into the audit log who did what and why, and with that the route file, where the route changes."""
        target = Resolved(operation.policy, operation.version, operation.digest)
        stable = _resolved(self._supervisor.stable)
        if operation.kind == "route":
            await self._keep("route", operation, stable, None)
        elif operation.kind in ("switch", "rollback"):
            previous = self._supervisor.version_table.previous
            # A rollback has already gone back: what was stable before it is the previous one now.
            before = _resolved(previous) if previous is not None and operation.kind == "rollback" else None
            await self._keep("switch", operation, target, stable if target != stable else before)
        else:
            await self.note(operation.kind, target, operation.was, operation.by, operation.reason)

    async def _keep(self, action: Action, operation: Operation, stable: Resolved, was: Resolved | None) -> None:
        """Keeps the route; where the store cannot be written to, it lasts until this process ends, and the log says so."""
        version_table = self._supervisor.version_table
        arms = [
            RouteArm(arm.name, version.version, version.digest, arm.share)
            for arm in version_table.arms
            if (version := version_table.find(arm.digest)) is not None and version.digest != stable.digest
        ]
        try:
            await self._route_file.keep(action, stable, arms, was, operation.by, operation.reason)
        except ArtifactError as error:
            self._log.warning("route_not_kept", error=str(error), **_for_log(operation, "error"))

    def _has_other_arms(self) -> bool:
        """Whether other arms are kept than there are: one became stable, now or while no daemon ran."""
        try:
            route = self._route_file.read()
        except ArtifactError as error:
            self._log.warning("route_unreadable", error=str(error))
            return False
        arms = {f"sha256:{arm.digest.hex()}" for arm in self._supervisor.version_table.arms}
        return route is not None and {arm.digest for arm in route.arms} != arms

    async def _put_back(self, operation: Operation, was: SealedVersion) -> None:
        """Makes the version that still serves the stable one after a restart again: the switch from it has failed."""
        by, reason = "pilliond", "the switch failed"
        try:
            if self.followed:
                policy, alias = operation.policy, self.followed
                moved = await asyncio.to_thread(
                    lambda: move_alias(
                        self.store, policy, alias, was.digest, expected=operation.version, by=by, reason=reason
                    )
                )
                self._seen = moved.digest
            else:
                failed = Resolved(operation.policy, operation.version, operation.digest)
                undone = msgspec.structs.replace(operation, by=by, reason=reason)
                await self._keep("switch", undone, _resolved(was), failed)
        except ArtifactError as error:
            self._log.error("route_left_behind", **{**_for_log(operation), "error": str(error)})

    async def note(self, action: Any, target: Resolved, was: str, by: str, reason: str) -> None:
        """Writes into the store's audit log; where that cannot be written to, the daemon's own log must do."""
        try:
            await asyncio.to_thread(self.store.note, action, target, was=was, by=by, reason=reason)
        except ArtifactError as error:
            self._log.warning("audit_failed", action=action, policy=str(target), by=by, reason=reason, error=str(error))

    def _stored_previous(self) -> Resolved:
        stable = self._supervisor.stable
        if self.followed:
            alias = read_alias(self.store.root, stable.policy, self.followed)
            if alias.was_version and alias.digest == stable.digest:
                return Resolved(stable.policy, alias.was_version, alias.was_digest)
        elif (route := self._route_file.read()) is not None and route.was_version and route.digest == stable.digest:
            return Resolved(stable.policy, route.was_version, route.was_digest)
        raise SwitchError(f"no version was served before {stable.version}")

    async def _follow(self) -> None:
        """Switches where the alias has moved. A version that failed is not tried again until it moves elsewhere."""
        revision = self.revision
        try:
            alias = await asyncio.to_thread(read_alias, self.store.root, self._supervisor.stable.policy, self.followed)
        except ArtifactError as error:
            if self._seen:
                self._seen = ""
                self._log.error("alias_unreadable", alias=self.followed, error=str(error))
            return
        # While it was read somebody may have moved it, by a switch that is through already.
        if alias.digest == self._seen or self._task is not None or self.revision != revision:
            return
        self._seen = alias.digest
        target = Resolved(alias.policy, alias.version, alias.digest)
        if target.digest == self._supervisor.stable.digest:
            return
        if target.digest in self._failed:
            self._log.error("alias_not_followed", alias=self.followed, policy=str(target), error="it failed before")
            return
        self._begin("switch", target, alias.moved_by, alias.reason or f"{self.followed} was moved")


def _resolved(version: SealedVersion) -> Resolved:
    return Resolved(version.policy, version.version, version.digest)


def _for_log(operation: Operation, *but: str) -> dict[str, Any]:
    wanted = ("number", "policy", "version", "was", "by", "reason", "error", "effect_ms", "stall_us", "swap_impact")
    said = {name: getattr(operation, name) for name in wanted}
    return {name: value for name, value in said.items() if value not in ("", None) and name not in but}
