"""Evaluation holds: keep versions loaded for named campaigns, in the store and in the serving process.

Rule: a hold is *made* in the store first, so that `gc` and a restart know of it, and holds its version once that is loaded. It is
*ended* in the store first, too. If its version cannot be loaded, the hold is removed from the store again.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Final

from structlog.typing import FilteringBoundLogger

from pillion_artifacts import ArtifactError, Resolved
from pillion_artifacts.store.evaluation_holds import EvaluationHold, end_hold, hold_version
from pilliond.errors import SwitchError
from pilliond.rollout.operation import Operation, Step
from pilliond.rollout.releases import Releases
from pilliond.supervision.policy_channel import PolicyChannel
from pilliond.supervision.version_table import key_of

_LOOK_S: Final = 0.5
_DAEMON: Final = "pilliond"


class EvaluationHolds:
    """Makes and ends the evaluation holds of the served policy. Owns nothing; `run` ends holds that have expired."""

    def __init__(self, channel: PolicyChannel, releases: Releases, log: FilteringBoundLogger) -> None:
        self._channel = channel
        self._releases = releases
        self._store = releases.store
        self._log = log
        self._holding = asyncio.Lock()
        self._holds = {hold.name: hold for hold in self._read()}

    def holds(self) -> list[EvaluationHold]:
        """Returns all holds that were made and have not ended."""
        return list(self._holds.values())

    def find(self, name: str) -> EvaluationHold | None:
        """Returns the hold of that name, or None."""
        return self._holds.get(name)

    def is_held(self, hold: EvaluationHold) -> bool:
        """Returns whether its version is loaded, so that sessions of the campaign get it."""
        return _key(hold) in self._channel.version_table.held

    async def add(
        self, target: Resolved, name: str, ttl_s: float, by: str, reason: str
    ) -> tuple[EvaluationHold, Operation]:
        """Makes a hold, or extends the one of that name and version, and begins to load its version.

        Raises `BusyError`, `HoldExistsError` or `StoreError`; then nothing has changed.
        """
        self._releases.operations.check_free()
        until = datetime.now(UTC) + timedelta(seconds=ttl_s)
        before = self._holds.get(name)
        hold = await asyncio.to_thread(hold_version, self._store, target, name, until, by=by, reason=reason)
        self._holds[name] = hold
        try:
            operation = self._releases.operations.begin(
                "hold",
                target,
                by,
                f"{name}: {reason}".rstrip(": "),
                lambda begun: self._hold(begun, target, hold, before),
            )
        except SwitchError:
            await self._withdraw(hold, before, "another operation was first")
            raise
        return hold, operation

    async def end(self, name: str, by: str, reason: str) -> EvaluationHold:
        """Ends a hold: nothing keeps its version loaded any more. Raises `PolicyNotFoundError` or `StoreError`."""
        hold = await asyncio.to_thread(end_hold, self._store, self._channel.stable.policy, name, by=by, reason=reason)
        await self._forget(hold)
        self._log.info("hold_ended", hold=name, policy=f"{hold.policy}@{hold.version}", by=by, reason=reason)
        return hold

    async def run(self) -> None:
        """Ends the holds that have expired, or that another process ended in the store, until it is cancelled."""
        while True:
            await self._follow_store()
            now = datetime.now(UTC)
            for hold in self.holds():
                if hold.until <= now:
                    await self._expire(hold)
            await asyncio.sleep(_LOOK_S)

    async def _follow_store(self) -> None:
        """Takes over what another daemon or command did to known holds. A hold that it made is taken over at the next start only."""
        known = self.holds()
        try:
            stored = await asyncio.to_thread(self._store.evaluation_holds, self._channel.stable.policy)
        except ArtifactError:
            # The store is damaged: `fsck` reports it, and `gc` refuses to work. The known holds stay.
            return
        by_id = {hold.id: hold for hold in stored}
        for hold in known:
            if self._holds.get(hold.name) is not hold:
                continue
            if hold.id in by_id:
                self._holds[hold.name] = by_id[hold.id]
            elif hold.until > datetime.now(UTC):
                await self._forget(hold)
                self._log.info("hold_ended", hold=hold.name, reason="it was ended elsewhere")

    async def _expire(self, hold: EvaluationHold) -> None:
        try:
            await self.end(hold.name, _DAEMON, "its time is over")
        except ArtifactError as error:
            # The store has the time at which it ends, so it has ended even if the store cannot be written to.
            self._log.warning("hold_ended", hold=hold.name, reason="its time is over", error=str(error))
            await self._forget(hold)

    async def _hold(
        self, operation: Operation, target: Resolved, hold: EvaluationHold, before: EvaluationHold | None
    ) -> None:
        try:
            # An old version may be unloaded between the look at the table and the message; so try twice.
            if not (
                await self._load_and_hold(operation, target, hold) or await self._load_and_hold(operation, target, hold)
            ):
                raise SwitchError("its version was unloaded meanwhile")
        except asyncio.CancelledError:
            # A daemon that ends keeps the hold: the next start loads its version.
            if not self._channel.is_stopping:
                await self._withdraw(hold, before, "it was cancelled")
            raise
        except (SwitchError, ArtifactError) as error:
            await self._withdraw(hold, before, str(error))
            raise

    async def _load_and_hold(self, operation: Operation, target: Resolved, hold: EvaluationHold) -> bool:
        """Returns whether the version is held; if not, it was unloaded meanwhile. Raises `SwitchError`."""
        version = await self._releases.loaded(operation, target)
        if not self._is_current(hold):
            raise SwitchError("the hold was ended meanwhile")
        operation.advance(Step.HOLDING)
        version_table = self._channel.version_table
        try:
            await self._apply()
        except SwitchError:
            if version_table.find(version.key) is not None:
                raise
        self._releases.settle(version)
        return version.key in version_table.held

    async def _withdraw(self, hold: EvaluationHold, before: EvaluationHold | None, why: str) -> None:
        """Removes a hold that failed. One that was there before stays, with its new end."""
        if before is not None or not self._is_current(hold):
            return
        del self._holds[hold.name]
        try:
            await asyncio.to_thread(end_hold, self._store, hold.policy, hold.name, by=_DAEMON, reason=why)
        except ArtifactError as error:
            self._log.error("hold_left_behind", hold=hold.name, error=str(error))

    async def _forget(self, hold: EvaluationHold) -> None:
        self._holds.pop(hold.name, None)
        self._releases.operations.count_change()
        try:
            await self._apply()
        except SwitchError:
            # There is no serving process to ask: the next one starts without it.
            self._channel.version_table.held = self._wanted()

    async def _apply(self) -> None:
        """Makes the serving process hold these versions and no others; raises `SwitchError`."""
        async with self._holding:
            await self._channel.hold(self._wanted())

    def _wanted(self) -> set[bytes]:
        """Returns the loaded versions that have a hold. A hold that was just made may still wait for its version."""
        wanted = {_key(hold) for hold in self.holds()}
        return {version.key for version in self._channel.version_table if version.key in wanted}

    def _is_current(self, hold: EvaluationHold) -> bool:
        """Returns whether this hold, which may have been extended, has not ended."""
        current = self._holds.get(hold.name)
        return current is not None and current.id == hold.id

    def _read(self) -> list[EvaluationHold]:
        try:
            return self._store.evaluation_holds(self._channel.stable.policy)
        except ArtifactError as error:
            self._log.error("holds_unreadable", error=str(error))
            return []


def _key(hold: EvaluationHold) -> bytes:
    return key_of(hold.digest)
