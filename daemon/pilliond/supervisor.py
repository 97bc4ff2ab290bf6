"""The supervisor: starts the serving process, watches it, starts it again when it dies."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from pilliond import channel, metrics_page
from pilliond.channel import (
    Assignment,
    Drain,
    Event,
    Failed,
    Load,
    Loaded,
    LoadFailed,
    Ready,
    Route,
    Routed,
    Switch,
    Switched,
    Unload,
    Unloaded,
)
from pilliond.confinement import CHILD_ENVIRONMENT
from pilliond.errors import DaemonError, NotReadyError, ServingDiedError, SwitchError
from pilliond.limits import DRAIN_S_MAX, LOAD_S_MAX, RESTART_DELAY_S_MAX, RESTARTS_WITHOUT_READY_MAX, START_S_MAX
from pilliond.listen import SocketFile, clear_socket_path, socket_path
from pilliond.metrics_page import MetricsPage, Phase, make_page
from pilliond.residents import Residents
from pilliond.sealed_version import SealedVersion
from pilliond.settings import Settings
from pilliond.shares import Arm


class StartRefusedError(DaemonError):
    """The serving process said why it cannot start."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Supervisor:
    """Owns the serving process, the metrics page and the sealed versions that the process has.

    Rule: there is one serving process at a time, and each start has an epoch greater than the last. It starts with the
    stable version alone.
    """

    def __init__(self, settings: Settings, stable: SealedVersion, log: Any) -> None:
        self.residents = Residents(stable)
        self.starts = 0
        self.ready: Ready | None = None
        self._settings = settings
        self._log = log
        self._page_descriptor = make_page()
        self.page = MetricsPage(self._page_descriptor)
        self._asked: tuple[bytes, asyncio.Future[Any]] | None = None
        self._epoch = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Any = None
        self._stopping: str | None = None
        self._socket_files: list[SocketFile] = []

    @property
    def stable(self) -> SealedVersion:
        """The version that new episodes lease."""
        return self.residents.stable

    @property
    def phase(self) -> Phase:
        """Where the serving process is in its life."""
        return Phase(self.page.cells[metrics_page.PHASE])

    @property
    def serving_pid(self) -> int | None:
        """The process id of the serving process, while it lives."""
        return None if self._process is None else self._process.pid

    @property
    def busy_poll_us(self) -> int:
        """How long the serving process looks without sleeping."""
        return self._settings.serving.busy_poll_us

    async def run(self, on_ready: Callable[[Ready], None]) -> None:
        """Keeps a serving process up until `stop`; raises `DaemonError` where that cannot be done."""
        failures = 0
        while self._stopping is None:
            self._start()
            try:
                came_up = await self._watch(on_ready)
            except StartRefusedError as refused:
                if self.starts == 1:
                    raise
                self._log.error("serving_failed", error=str(refused))
                came_up = False
            finally:
                code = await self._reap()
            if self._stopping is not None:
                return
            failures = 0 if came_up else failures + 1
            if failures >= RESTARTS_WITHOUT_READY_MAX or (self.starts == 1 and not came_up):
                raise ServingDiedError(f"the serving process ended with {code} before it was ready")
            delay_s = min(RESTART_DELAY_S_MAX, 0.1 * 2**failures)
            self._log.error("serving_died", exit_code=code, restart_in_s=delay_s)
            await asyncio.sleep(delay_s)

    def stop(self, reason: str) -> None:
        """Tells the serving process to drain; `run` returns when it is gone."""
        if self._stopping is not None:
            return
        self._stopping = reason
        if self._end is not None:
            channel.send(self._end, Drain(reason))
        if self._process is not None:
            asyncio.get_running_loop().call_later(DRAIN_S_MAX, self._kill, "it did not drain in time")

    async def load(self, version: SealedVersion) -> Loaded:
        """Loads a staged version beside the one that serves, and takes it over; raises `SwitchError`."""
        self._check_is_ready()
        version.place = self.residents.free_place()
        self.page.clear(version.place)
        loaded = await self._ask(Load(version.order()), version.key, [version.model_descriptor])
        assert isinstance(loaded, Loaded)
        self.residents.add(version)
        return loaded

    async def switch(self, version: SealedVersion) -> Switched:
        """Lets new episodes lease a version that is loaded; raises `SwitchError`."""
        self._check_is_ready()
        switched = await self._ask(Switch(version.key), version.key)
        assert isinstance(switched, Switched)
        return switched

    async def route(self, arms: list[Arm]) -> None:
        """Shares out new episodes among versions that are loaded; raises `SwitchError`."""
        self._check_is_ready()
        digest = self.stable.key
        await self._ask(Route(digest, arms), digest)

    def unload(self, version: SealedVersion) -> None:
        """Lets a version go that was loaded and is not switched to."""
        if self._end is not None:
            channel.send(self._end, Unload(version.key))

    def close(self) -> None:
        """Gives back the page, the sealed versions and the socket files."""
        for file in self._socket_files:
            file.remove()
        self.page.close()
        os.close(self._page_descriptor)
        self.residents.close()

    def _check_is_ready(self) -> None:
        if self.phase is not Phase.READY:
            raise NotReadyError(f"the serving process is {self.phase.name.lower()}, not ready")

    async def _ask(
        self, order: Load | Switch | Route, digest: bytes, descriptors: Sequence[int] = ()
    ) -> Loaded | Switched | Routed:
        """Gives an order and waits for what came of it; one at a time."""
        assert self._asked is None
        answer: asyncio.Future[Loaded | Switched | Routed] = asyncio.get_running_loop().create_future()
        self._asked = (digest, answer)
        try:
            channel.send(self._end, order, descriptors)
            return await asyncio.wait_for(answer, LOAD_S_MAX)
        except TimeoutError:
            raise SwitchError(f"the serving process did not answer within {LOAD_S_MAX:g} s") from None
        finally:
            self._asked = None

    def _answer(self, digest: bytes, result: Loaded | Switched | Routed | SwitchError) -> None:
        if self._asked is None or self._asked[0] != digest or self._asked[1].done():
            return
        if isinstance(result, SwitchError):
            self._asked[1].set_exception(result)
        else:
            self._asked[1].set_result(result)

    def _start(self) -> None:
        for path in self._socket_paths():
            clear_socket_path(path, self._settings.data.group_id())
        self.page.cells[metrics_page.PHASE] = Phase.STARTING
        self.residents.restart()
        self.page.clear(self.stable.place)
        self._epoch = max(self._epoch + 1, time.time_ns() // 1_000_000)
        self.starts += 1
        self._end, serving_end = channel.make_channel()
        with serving_end:
            descriptors = (serving_end.fileno(), self._page_descriptor, *self.stable.descriptors())
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pilliond.serving", str(serving_end.fileno())],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **CHILD_ENVIRONMENT},
            )
        channel.send(self._end, self._assignment())

    def _socket_paths(self) -> list[str]:
        paths = map(socket_path, self._settings.data_addresses())
        return [path for path in paths if path is not None]

    def _assignment(self) -> Assignment:
        stable = self.stable
        return Assignment(
            epoch=self._epoch,
            listen=self._settings.data_addresses(),
            version=stable.order(),
            model_descriptor=stable.model_descriptor,
            golden_descriptor=stable.golden_descriptor,
            page_descriptor=self._page_descriptor,
            engine=self._settings.engine,
            limits=self._settings.limits,
            serving=self._settings.serving,
            residence=self._settings.versions,
            watch_s=self._settings.take_back.watch_s,
            certificate=self._settings.staging.certificate,
            group=self._settings.data.group_id(),
        )

    async def _watch(self, on_ready: Callable[[Ready], None]) -> bool:
        """Follows the serving process until it is gone; tells whether it was ever ready."""
        timer = asyncio.get_running_loop().call_later(START_S_MAX, self._kill, "it was not ready in time")
        came_up = False
        try:
            while (report := await self._next_report()) is not None:
                match report:
                    case Ready():
                        timer.cancel()
                        came_up = True
                        self.ready = report
                        self.stable.certificate = report.certificate
                        self._socket_files = [SocketFile(path) for path in self._socket_paths()]
                        on_ready(report)
                    case Failed():
                        raise StartRefusedError(report.message, report.exit_code)
                    case Loaded():
                        self._answer(report.digest, report)
                    case LoadFailed():
                        self._answer(report.digest, SwitchError(report.message))
                    case Switched():
                        self.residents.switch(report.digest)
                        self._answer(report.digest, report)
                    case Routed():
                        self.residents.arms = report.arms
                        self._answer(report.digest, report)
                    case Unloaded():
                        self._log_unloaded(report)
                        self.residents.remove(report.digest)
                    case Event():
                        self._log.warning(report.name, **report.fields)
        finally:
            timer.cancel()
        return came_up

    def _log_unloaded(self, report: Unloaded) -> None:
        version = self.residents.find(report.digest)
        if version is not None:
            self._log.info("version_unloaded", version=str(version), digest=version.digest, leases=report.leases)

    async def _next_report(self) -> channel.Report | None:
        try:
            return await channel.receive_report(self._end)
        except msgspec.MsgspecError as error:
            self._kill(f"it sent what cannot be read: {error}")
            return None

    async def _reap(self) -> int:
        """Waits for the end of the serving process, and gives its exit code."""
        assert self._process is not None
        if self._asked is not None:
            self._answer(self._asked[0], SwitchError("the serving process ended meanwhile"))
        self._end.close()
        self._end = None
        code = await asyncio.to_thread(self._process.wait)
        self._process = None
        self.ready = None
        cells = self.page.cells
        cells[metrics_page.PHASE] = Phase.STOPPED if self._stopping is not None else Phase.FAILED
        for gauge in metrics_page.GAUGES:
            cells[gauge] = 0
        return code

    def _kill(self, why: str) -> None:
        if self._process is not None:
            self._log.error("serving_killed", reason=why)
            self._process.kill()
