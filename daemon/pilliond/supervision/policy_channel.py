"""One policy in the serving process: its loaded versions, and the control messages about them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from pilliond.ipc.control_channel import (
    Beside,
    EndShadow,
    Held,
    Hold,
    Load,
    Loaded,
    PolicyConfig,
    Route,
    Routed,
    Shadow,
    Shadowed,
    Switch,
    Switched,
    Unload,
    Warm,
    Warmed,
)
from pilliond.ipc.metrics_page import MetricsPage, PolicyCells
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.settings.schema import Settings
from pilliond.supervision.version_table import VersionTable
from pilliond.traffic_split import Arm

if TYPE_CHECKING:
    from pilliond.supervision.supervisor import Supervisor


class PolicyChannel:
    """What the control process asks the serving process for one policy. Owns the version table of the policy.

    `settings` are those of this policy (`Settings.served`); `cells` are its cells in the metrics page. Every call that awaits
    raises `SwitchError` if the serving process refuses, and `NotReadyError` if it is not there to be asked.
    """

    def __init__(
        self, supervisor: Supervisor, settings: Settings, version_table: VersionTable, cells: PolicyCells
    ) -> None:
        self.settings = settings
        self.version_table = version_table
        self.cells = cells
        self.on_serving: Callable[[], None] = _nothing
        """Called each time a serving process becomes ready."""
        self._supervisor = supervisor

    @property
    def name(self) -> str:
        """The name of the policy."""
        return self.version_table.stable.policy

    @property
    def stable(self) -> SealedVersion:
        """The version that new episodes lease."""
        return self.version_table.stable

    @property
    def page(self) -> MetricsPage:
        """The metrics page, of all policies."""
        return self._supervisor.page

    @property
    def is_ready(self) -> bool:
        """As `Supervisor.is_ready`."""
        return self._supervisor.is_ready

    @property
    def is_stopping(self) -> bool:
        """As `Supervisor.is_stopping`."""
        return self._supervisor.is_stopping

    @property
    def rows_max(self) -> int:
        """Most rows in one act."""
        return self.settings.limits.rows_max

    async def load(self, version: SealedVersion) -> Loaded:
        """Loads a staged version beside the live one. Takes it over if it loads."""
        self._supervisor.check_is_ready()
        version.metrics_index = self.version_table.free_metrics_index()
        self.page.clear(version.metrics_index)
        supervisor = self._supervisor
        supervisor.loading[version.key] = version
        try:
            loaded = await supervisor.ask(Load(version.request()), Loaded, version.key, [version.model_descriptor])
        except BaseException:
            supervisor.workers.end(version.key)
            raise
        finally:
            del supervisor.loading[version.key]
        self.version_table.add(version)
        return loaded

    def why_out(self, version: SealedVersion) -> str:
        """Returns why the engine of a loaded version is out; empty if it is not."""
        return self._supervisor.workers.why_out(version.key)

    async def retry(self, version: SealedVersion) -> None:
        """Tries a loaded version again if it is out, or replicas of it are; raises `SwitchError` if it is out again."""
        await self._supervisor.workers.retry(version.key)

    async def switch(self, version: SealedVersion) -> Switched:
        """Makes a loaded version the one that new episodes lease."""
        return await self._supervisor.ask(Switch(version.key), Switched, version.key)

    async def route(self, arms: list[Arm]) -> None:
        """Splits new episodes among loaded versions."""
        digest = self.stable.key
        await self._supervisor.ask(Route(digest, arms), Routed, digest)

    async def hold(self, digests: set[bytes]) -> None:
        """Holds these loaded versions for evaluations, and no others."""
        await self._supervisor.ask(Hold(self.name, sorted(digests)), Held, self.name.encode())

    async def warm(self, version: SealedVersion) -> Warmed:
        """Runs every bucket of a loaded version once."""
        return await self._supervisor.ask(Warm(version.key), Warmed, version.key)

    async def shadow(self, page_descriptor: int) -> None:
        """Begins to copy the stable version's batches into a shadow's page."""
        digest = self.stable.key
        await self._supervisor.ask(Shadow(digest), Shadowed, digest, [page_descriptor])

    def send_shadow(self, page_descriptor: int) -> None:
        """Does the same without waiting for the answer; raises `OSError`."""
        self._supervisor.tell(Shadow(self.stable.key), [page_descriptor])

    def end_shadow(self) -> None:
        """Ends the copying."""
        # If the serving process just died, it copies nothing. If it does not read, it fills the ring, which is not emptied, and stops.
        with contextlib.suppress(OSError):
            self._supervisor.tell(EndShadow(self.name))

    def unload(self, version: SealedVersion) -> None:
        """Unloads a version that is not in use."""
        self._supervisor.tell(Unload(version.key))

    def config(self) -> PolicyConfig:
        """Returns what a new serving process needs to serve the policy."""
        stable, settings = self.stable, self.settings
        return PolicyConfig(
            version=stable.request(),
            model_descriptor=stable.model_descriptor,
            golden_descriptor=stable.golden_descriptor,
            engine=settings.engine,
            limits=settings.limits.of_policy(),
            residency=settings.versions,
            watch_s=settings.auto_rollback.watch_s,
            certificate=settings.staging.certificate,
            beside=[
                Beside(version.request(), version.model_descriptor, version.golden_descriptor)
                for version in self.version_table.beside()
            ],
            arms=self.version_table.arms,
            held=sorted(self.version_table.held),
        )


def _nothing() -> None:
    pass
