"""The route keeper: keeps the stable version and the arms in the store, with who changed them and why.

Rule: the followed alias points to the stable version; a daemon that follows none has it in its route file. Either is changed
before the switch, and changed back if the switch fails, so that a daemon that is killed in between restarts with the new route.
A rollback switches first: a bad version must stop at once, even if the store cannot be written to.
"""

from __future__ import annotations

import asyncio

import msgspec
from structlog.typing import FilteringBoundLogger

from pillion_artifacts import ArtifactError, Resolved, Store
from pillion_artifacts.names import parse_reference
from pillion_artifacts.store.aliases import Alias, move_alias, previous_version, read_alias, roll_back_alias
from pillion_artifacts.store.audit_log import Action
from pillion_artifacts.store.routes import RouteArm
from pilliond.errors import SwitchError
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.rollout.operation import Operation
from pilliond.rollout.route_file import RouteFile
from pilliond.supervision.version_table import VersionTable, resolved


class FollowedAlias:
    """The alias that the daemon follows (`stable` of `NAME@stable`), and what the daemon knows of it. Plain.

    Rule: the daemon acts on each move of the alias once. It does not follow the alias to a version that failed before, until an
    operator asks for that version and it loads.
    """

    def __init__(self, name: str, digest: str) -> None:
        self.name = name
        """Empty: the daemon follows none."""
        self.acted_on = digest
        """Where the alias pointed when the daemon acted on it last; empty: the daemon is to act on it anew."""
        self.failed: set[str] = set()
        """Digests of versions that failed."""


class RouteKeeper:
    """Writes the route and the audit log of the store. Owns nothing."""

    def __init__(self, store: Store, version_table: VersionTable, reference: str, log: FilteringBoundLogger) -> None:
        self.alias = FollowedAlias(parse_reference(reference).alias, version_table.stable.digest)
        self._store = store
        self._version_table = version_table
        self._route_file = RouteFile(store, reference)
        self._log = log

    async def read_alias(self) -> Alias:
        """Returns where the followed alias points; raises `ArtifactError`."""
        policy = self._version_table.stable.policy
        return await asyncio.to_thread(read_alias, self._store.root, policy, self.alias.name)

    def stored_previous(self) -> Resolved:
        """Returns the version that was stable before, as the store has it; raises `SwitchError` or `ArtifactError`."""
        stable = self._version_table.stable
        if self.alias.name:
            alias = read_alias(self._store.root, stable.policy, self.alias.name)
            if alias.was_version and alias.digest == stable.digest:
                return Resolved(stable.policy, alias.was_version, alias.was_digest)
        elif (route := self._route_file.read()) is not None and route.was_version and route.digest == stable.digest:
            return Resolved(stable.policy, route.was_version, route.was_digest)
        raise SwitchError(f"no version was served before {stable.version}")

    async def make_stable(self, operation: Operation) -> None:
        """Makes the version of an operation the stable one after a restart; raises `ArtifactError`."""
        if not self.alias.name:
            await self.record(operation)
            return
        moved = await asyncio.to_thread(self._moved, operation)
        self.alias.acted_on = moved.digest

    async def put_back(self, operation: Operation, was: SealedVersion) -> None:
        """Makes `was`, which still serves, the stable version after a restart again: the switch from it has failed."""
        by, reason = "pilliond", "the switch failed"
        try:
            if self.alias.name:
                policy, alias = operation.policy, self.alias.name
                moved = await asyncio.to_thread(
                    lambda: move_alias(
                        self._store, policy, alias, was.digest, expected=operation.version, by=by, reason=reason
                    )
                )
                self.alias.acted_on = moved.digest
            else:
                failed = Resolved(operation.policy, operation.version, operation.digest)
                undone = msgspec.structs.replace(operation, by=by, reason=reason)
                await self._keep("switch", undone, resolved(was), failed)
        except ArtifactError as error:
            self._log.error("route_left_behind", **{**operation.log_fields(), "error": str(error)})

    async def note_switched(self, operation: Operation, version: SealedVersion) -> None:
        """Notes that a version serves as the stable one. An arm that became stable is no arm any more."""
        self.alias.acted_on = version.digest
        if self.alias.name and self._has_other_arms():
            await self._keep("route", operation, resolved(version), None)

    async def record(self, operation: Operation) -> None:
        """Writes an operation into the audit log, and with it the route file if the operation changes the route."""
        target = Resolved(operation.policy, operation.version, operation.digest)
        stable = resolved(self._version_table.stable)
        if operation.kind == "route":
            await self._keep("route", operation, stable, None)
        elif operation.kind in ("switch", "rollback"):
            previous = self._version_table.previous
            # A rollback has switched already: the version that was stable before it is the previous one now.
            before = resolved(previous) if previous is not None and operation.kind == "rollback" else None
            await self._keep("switch", operation, target, stable if target != stable else before)
        else:
            assert operation.kind == "stage"
            await self.note("stage", target, operation.was, operation.by, operation.reason)

    async def note(self, action: Action, target: Resolved, was: str, by: str, reason: str) -> None:
        """Writes into the audit log of the store, or into the daemon's own log if the store cannot be written to."""
        try:
            await asyncio.to_thread(self._store.note, action, target, was=was, by=by, reason=reason)
        except ArtifactError as error:
            self._log.warning("audit_failed", action=action, policy=str(target), by=by, reason=reason, error=str(error))

    def _moved(self, operation: Operation) -> Alias:
        policy, alias = operation.policy, self.alias.name
        by, reason = operation.by, operation.reason
        now = read_alias(self._store.root, policy, alias)
        if now.digest == operation.digest:
            return now
        if operation.kind == "rollback" and previous_version(self._store, now) == operation.version:
            return roll_back_alias(self._store, policy, alias, by=by, reason=reason)
        return move_alias(self._store, policy, alias, operation.version, expected=operation.was, by=by, reason=reason)

    async def _keep(self, action: Action, operation: Operation, stable: Resolved, was: Resolved | None) -> None:
        """Keeps the route. If the store cannot be written to, the route lasts until this process ends; that is logged."""
        arms = [
            RouteArm(arm.name, version.version, version.digest, arm.share)
            for arm in self._version_table.arms
            if (version := self._version_table.find(arm.digest)) is not None and version.digest != stable.digest
        ]
        try:
            await self._route_file.keep(action, stable, arms, was, operation.by, operation.reason)
        except ArtifactError as error:
            self._log.warning("route_not_kept", error=str(error), **operation.log_fields("error"))

    def _has_other_arms(self) -> bool:
        """Returns whether the store has other arms than serve: one became stable, now or while no daemon ran."""
        try:
            route = self._route_file.read()
        except ArtifactError as error:
            self._log.warning("route_unreadable", error=str(error))
            return False
        arms = {f"sha256:{arm.digest.hex()}" for arm in self._version_table.arms}
        return route is not None and {arm.digest for arm in route.arms} != arms
