"""Evaluations: the versions that campaigns hold, in the store and in the serving process.

Rule: a lease is *made* in the store first, so that `gc` and a restart know of it, and holds its version once that is loaded; it is
*ended* in the store first too. One whose version cannot be loaded is taken out of the store again.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pillion_artifacts import ArtifactError, Resolved
from pillion_artifacts.store.evaluation_leases import EvaluationLease
from pilliond.errors import SwitchError
from pilliond.rollout.operation import Operation
from pilliond.rollout.releases import Releases
from pilliond.supervision.supervisor import Supervisor

_LOOK_S: Final = 0.5
_DAEMON: Final = "pilliond"


class Evaluations:
    """The evaluation leases of the policy that is served. Owns nothing; `run` ends those whose time is over."""

    def __init__(self, supervisor: Supervisor, releases: Releases, log: Any) -> None:
        self._supervisor = supervisor
        self._releases = releases
        self._store = releases.store
        self._log = log
        self._holding = asyncio.Lock()
        self._leases = {lease.name: lease for lease in self._read()}

    def leases(self) -> list[EvaluationLease]:
        """All that were made and not ended."""
        return list(self._leases.values())

    def find(self, name: str) -> EvaluationLease | None:
        """The lease of that name, or None."""
        return self._leases.get(name)

    def holds(self, lease: EvaluationLease) -> bool:
        """Whether its version is loaded, so that sessions of the campaign get it."""
        return _key(lease) in self._supervisor.residents.held

    async def add(
        self, target: Resolved, name: str, ttl_s: float, by: str, reason: str
    ) -> tuple[EvaluationLease, Operation]:
        """Makes a lease, or lets one of that name and version last until later; and begins to load its version.

        Raises `BusyError`, `LeaseExistsError` or `StoreError`; then there is none.
        """
        self._releases.check_free()
        until = datetime.now(UTC) + timedelta(seconds=ttl_s)
        before = self._leases.get(name)
        lease = await asyncio.to_thread(self._store.hold, target, name, until, by=by, reason=reason)
        self._leases[name] = lease
        try:
            operation = self._releases.begin(
                "lease",
                target,
                by,
                f"{name}: {reason}".rstrip(": "),
                lambda begun: self._hold(begun, target, lease, before),
            )
        except SwitchError:
            await self._withdraw(lease, before, "another operation was first")
            raise
        return lease, operation

    async def end(self, name: str, by: str, reason: str) -> EvaluationLease:
        """Ends a lease: its version is one like any other now. Raises `PolicyNotFoundError` or `StoreError`."""
        lease = await asyncio.to_thread(
            self._store.end_hold, self._supervisor.stable.policy, name, by=by, reason=reason
        )
        await self._forget(lease)
        self._log.info("lease_ended", lease=name, policy=f"{lease.policy}@{lease.version}", by=by, reason=reason)
        return lease

    async def run(self) -> None:
        """Ends the leases whose time is over, or that somebody else has ended, until it is cancelled."""
        while True:
            await self._follow_store()
            now = datetime.now(UTC)
            for lease in self.leases():
                if lease.until <= now:
                    await self._expire(lease)
            await asyncio.sleep(_LOOK_S)

    async def _follow_store(self) -> None:
        """Another daemon of the policy may end a lease, or let it last longer; its own begin only there, until the next start."""
        known = self.leases()
        try:
            stored = await asyncio.to_thread(self._store.evaluations, self._supervisor.stable.policy)
        except ArtifactError:
            # What is damaged says nothing; it is found by `fsck`, and keeps `gc` from its work.
            return
        by_id = {lease.id: lease for lease in stored}
        for lease in known:
            if self._leases.get(lease.name) is not lease:
                continue
            if lease.id in by_id:
                self._leases[lease.name] = by_id[lease.id]
            elif lease.until > datetime.now(UTC):
                await self._forget(lease)
                self._log.info("lease_ended", lease=lease.name, reason="it was ended elsewhere")

    async def _expire(self, lease: EvaluationLease) -> None:
        try:
            await self.end(lease.name, _DAEMON, "its time is over")
        except ArtifactError as error:
            # It holds nothing any more whether or not the store can be told: its time stands there.
            self._log.warning("lease_ended", lease=lease.name, reason="its time is over", error=str(error))
            await self._forget(lease)

    async def _hold(
        self, operation: Operation, target: Resolved, lease: EvaluationLease, before: EvaluationLease | None
    ) -> None:
        try:
            # An old version may go between the look and the order, once.
            if not (
                await self._load_and_hold(operation, target, lease)
                or await self._load_and_hold(operation, target, lease)
            ):
                raise SwitchError("its version was unloaded meanwhile")
        except asyncio.CancelledError:
            # A daemon that ends goes on with it when it is started again.
            if not self._supervisor.is_stopping:
                await self._withdraw(lease, before, "it was cancelled")
            raise
        except (SwitchError, ArtifactError) as error:
            await self._withdraw(lease, before, str(error))
            raise

    async def _load_and_hold(self, operation: Operation, target: Resolved, lease: EvaluationLease) -> bool:
        """Tells whether the version is held; else it was unloaded meanwhile. Raises `SwitchError`."""
        version = await self._releases.loaded(operation, target)
        if not self._is_current(lease):
            raise SwitchError("the lease was ended meanwhile")
        operation.step = "holding"
        residents = self._supervisor.residents
        try:
            await self._apply()
        except SwitchError:
            if residents.find(version.key) is not None:
                raise
        self._releases.settle(version)
        return version.key in residents.held

    async def _withdraw(self, lease: EvaluationLease, before: EvaluationLease | None, why: str) -> None:
        """Takes back a lease that came to nothing; one that was there before stays, as long as it now lasts."""
        if before is not None or not self._is_current(lease):
            return
        del self._leases[lease.name]
        try:
            await asyncio.to_thread(self._store.end_hold, lease.policy, lease.name, by=_DAEMON, reason=why)
        except ArtifactError as error:
            self._log.error("lease_left_behind", lease=lease.name, error=str(error))

    async def _forget(self, lease: EvaluationLease) -> None:
        self._leases.pop(lease.name, None)
        self._releases.revision += 1
        try:
            await self._apply()
        except SwitchError:
            # No serving process is there that could be told: the next one begins without it.
            self._supervisor.residents.held = self._wanted()

    async def _apply(self) -> None:
        """Lets the serving process hold what the leases say; raises `SwitchError`."""
        async with self._holding:
            await self._supervisor.hold(self._wanted())

    def _wanted(self) -> set[bytes]:
        """What the leases say, of what is loaded: a lease that was just made waits for its version."""
        wanted = {_key(lease) for lease in self.leases()}
        return {version.key for version in self._supervisor.residents if version.key in wanted}

    def _is_current(self, lease: EvaluationLease) -> bool:
        """Whether that very lease, which may last longer by now, was not ended."""
        current = self._leases.get(lease.name)
        return current is not None and current.id == lease.id

    def _read(self) -> list[EvaluationLease]:
        try:
            return self._store.evaluations(self._supervisor.stable.policy)
        except ArtifactError as error:
            self._log.error("leases_unreadable", error=str(error))
            return []


def _key(lease: EvaluationLease) -> bytes:
    return bytes.fromhex(lease.digest.removeprefix("sha256:"))
