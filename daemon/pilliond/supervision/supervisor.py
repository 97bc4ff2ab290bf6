"""The supervisor: starts the serving process, watches it, and restarts it when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import msgspec
from structlog.typing import FilteringBoundLogger

from pilliond.errors import DaemonError, NotReadyError, ServingDiedError, ServingGaveUpError, SwitchError
from pilliond.ipc import control_channel as channel
from pilliond.ipc import metrics_page
from pilliond.ipc.control_channel import (
    Beside,
    Drain,
    EndShadow,
    Event,
    Failed,
    Held,
    Hold,
    ListSessions,
    Load,
    Loaded,
    LoadFailed,
    Ready,
    Route,
    Routed,
    SessionList,
    Shadow,
    Shadowed,
    StartupConfig,
    Switch,
    Switched,
    Unload,
    Unloaded,
    Warm,
    Warmed,
)
from pilliond.ipc.metrics_page import MetricsPage, Phase, make_page
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.limits import (
    DRAIN_S_MAX,
    LOAD_S_MAX,
    START_S_MAX,
)
from pilliond.linux.sandbox import CHILD_ENVIRONMENT
from pilliond.linux.spawner import Spawner
from pilliond.settings.addresses import SocketFile, clear_socket_path, socket_path
from pilliond.settings.schema import Settings
from pilliond.supervision.progress_watch import is_late
from pilliond.supervision.restart_policy import RestartPolicy
from pilliond.supervision.serving_state import ServingState, in_words, serving_state
from pilliond.supervision.version_table import VersionTable
from pilliond.traffic_split import Arm

Answer = Loaded | Switched | Routed | Held | Warmed | Shadowed | SessionList
_ENDED: Final = "the serving process ended meanwhile"

R = TypeVar("R", Loaded, Switched, Routed, Held, Warmed, Shadowed, SessionList)


class StartRefusedError(DaemonError):
    """The serving process refuses to start."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Supervisor:
    """Owns the serving process, the metrics page and the sealed versions that the process has.

    Rule: there is one serving process at a time, and each start has a greater epoch than the last. It starts with the stable
    version, the arms and the held versions; after `RESTARTS_WITH_ALL_MAX` failed starts, with the stable version alone.
    `RestartPolicy` decides whether and when.
    """

    def __init__(self, settings: Settings, stable: SealedVersion, spawner: Spawner, log: FilteringBoundLogger) -> None:
        self.version_table = VersionTable(stable)
        self.starts = 0
        self.restarts = RestartPolicy(settings.serving.restarts_max, settings.serving.restarts_window_s)
        self.ready: Ready | None = None
        self._settings = settings
        self._spawner = spawner
        self._log = log
        self._page_descriptor = make_page()
        self.page = MetricsPage(self._page_descriptor)
        self._pending: dict[type[Answer], tuple[bytes, asyncio.Future[Any]]] = {}
        """Requests without an answer yet: by the kind of report, the digest asked about and the future of the answer."""
        self.on_serving: Callable[[], None] = _nothing
        """Called each time a serving process becomes ready."""
        self._epoch = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Any = None
        self._stopping: str | None = None
        self._socket_files: list[SocketFile] = []

    @property
    def stable(self) -> SealedVersion:
        """The version that new episodes lease."""
        return self.version_table.stable

    @property
    def phase(self) -> Phase:
        """The phase of the serving process."""
        return Phase(self.page.cells[metrics_page.PHASE])

    @property
    def is_ready(self) -> bool:
        """Whether the serving process answers clients and control messages."""
        return self.phase is Phase.READY and self._end is not None

    @property
    def ticked_ns(self) -> int:
        """When the serving process ticked last, or became ready if it has not ticked since, on CLOCK_MONOTONIC."""
        return max(self.page.cells[metrics_page.TICK_AT_NS], self.page.cells[metrics_page.READY_AT_NS])

    @property
    def state(self) -> ServingState:
        """The state of the serving process, as it is seen from outside."""
        is_running = self._process is not None and self._end is not None
        late = is_late(time.monotonic_ns(), self.ticked_ns)
        return serving_state(self.phase, is_running, late, bool(self.restarts.gave_up))

    @property
    def is_stopping(self) -> bool:
        """Whether the daemon is ending."""
        return self._stopping is not None

    @property
    def serving_pid(self) -> int | None:
        """The process id of the serving process; None while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def busy_poll_us(self) -> int:
        """How long the serving process polls without sleeping."""
        return self._settings.serving.busy_poll_us

    @property
    def rows_max(self) -> int:
        """Most rows in one act."""
        return self._settings.limits.rows_max

    async def run(self, on_ready: Callable[[Ready], None]) -> None:
        """Keeps a serving process up until `stop`; raises `DaemonError` if it does not stay up."""
        while self._stopping is None:
            self.restarts.started()
            self._start(alone=self.restarts.starts_alone)
            try:
                was_ready = await self._watch(on_ready)
            except StartRefusedError as refused:
                if self.starts == 1:
                    raise
                self._log.error("serving_failed", error=str(refused))
                was_ready = False
            finally:
                code = await self._reap()
            if self._stopping is not None:
                return
            if self.starts == 1 and not was_ready and not self.version_table.beside():
                raise ServingDiedError(f"the serving process ended with {code} before it was ready")
            await self._pause(code)

    async def _pause(self, code: int) -> None:
        """Waits until the next start is due; raises `ServingGaveUpError` if there is to be none."""
        restarts = self.restarts
        delay_s = restarts.ended(code, time.monotonic_ns())
        if restarts.gave_up:
            self._log.error("serving_gave_up", exit_code=code, reason=restarts.gave_up, restarts=restarts.restarts)
            raise ServingGaveUpError(
                f"the serving process does not stay up: {restarts.gave_up}; it ended with {code} last"
            )
        self._log.error("serving_died", exit_code=code, restart_in_s=delay_s, failures=restarts.failures)
        await asyncio.sleep(delay_s)

    def describe(self) -> str:
        """Returns the state of the serving process in words; "ready" if acts are answered."""
        silent_s = (time.monotonic_ns() - self.ticked_ns) / 1e9
        restarts = self.restarts
        exit_code = restarts.last_exit_code if self._process is None else None
        return in_words(self.state, self.phase, silent_s, exit_code, restarts.gave_up)

    def kill(self, why: str) -> None:
        """Kills the serving process, which is then restarted."""
        self._kill(why)

    def stop(self, reason: str) -> None:
        """Makes the serving process drain; `run` returns when it has ended."""
        if self._stopping is not None:
            return
        self._stopping = reason
        if self._end is not None:
            channel.send(self._end, Drain(reason))
        if self._process is not None:
            asyncio.get_running_loop().call_later(DRAIN_S_MAX, self._kill, "it did not drain in time")

    async def load(self, version: SealedVersion) -> Loaded:
        """Loads a staged version beside the live one. Takes it over if it loads; raises `SwitchError`."""
        self._check_is_ready()
        version.metrics_index = self.version_table.free_metrics_index()
        self.page.clear(version.metrics_index)
        loaded = await self._ask(Load(version.request()), Loaded, version.key, [version.model_descriptor])
        self.version_table.add(version)
        return loaded

    async def switch(self, version: SealedVersion) -> Switched:
        """Makes a loaded version the one that new episodes lease; raises `SwitchError`."""
        self._check_is_ready()
        return await self._ask(Switch(version.key), Switched, version.key)

    async def route(self, arms: list[Arm]) -> None:
        """Splits new episodes among loaded versions; raises `SwitchError`."""
        self._check_is_ready()
        digest = self.stable.key
        await self._ask(Route(digest, arms), Routed, digest)

    async def hold(self, digests: set[bytes]) -> None:
        """Holds these loaded versions for evaluations, and no others; raises `SwitchError`. One call at a time."""
        self._check_is_ready()
        await self._ask(Hold(sorted(digests)), Held, b"held")

    async def warm(self, version: SealedVersion) -> Warmed:
        """Runs every bucket of a loaded version once; raises `SwitchError`."""
        self._check_is_ready()
        return await self._ask(Warm(version.key), Warmed, version.key)

    async def sessions(self, after: int) -> SessionList:
        """Returns some sessions that were opened after session number `after`; raises `SwitchError`. One call at a time."""
        self._check_is_ready()
        return await self._ask(ListSessions(after), SessionList, b"sessions")

    async def shadow(self, page_descriptor: int) -> None:
        """Begins to copy the stable version's batches into a shadow's page; raises `SwitchError`."""
        self._check_is_ready()
        await self._ask(Shadow(self.stable.key), Shadowed, b"shadowed", [page_descriptor])

    def send_shadow(self, page_descriptor: int) -> None:
        """Does the same without waiting for the answer; raises `OSError`."""
        channel.send(self._end, Shadow(self.stable.key), [page_descriptor])

    def end_shadow(self) -> None:
        """Ends the copying."""
        # If the serving process just died, it copies nothing. If it does not read, it fills the ring, which is not emptied, and stops.
        with contextlib.suppress(OSError):
            if self._end is not None:
                channel.send(self._end, EndShadow())

    def unload(self, version: SealedVersion) -> None:
        """Unloads a version that is not in use."""
        if self._end is not None:
            channel.send(self._end, Unload(version.key))

    def close(self) -> None:
        """Releases the page, the sealed versions and the socket files."""
        for file in self._socket_files:
            file.remove()
        self.page.close()
        os.close(self._page_descriptor)
        self.version_table.close()

    def _check_is_ready(self) -> None:
        if self._end is None and self.phase is Phase.READY:
            raise NotReadyError(_ENDED)
        if not self.is_ready:
            raise NotReadyError(f"the serving process is {self.phase.name.lower()}, not ready")

    async def _ask(
        self, message: channel.ControlMessage, kind: type[R], digest: bytes, descriptors: Sequence[int] = ()
    ) -> R:
        """Sends a control message and waits for the report that answers it. One message per kind of report at a time."""
        assert kind not in self._pending
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._pending[kind] = (digest, answer)
        try:
            channel.send(self._end, message, descriptors)
            return await asyncio.wait_for(answer, LOAD_S_MAX)
        except TimeoutError:
            raise SwitchError(f"the serving process did not answer within {LOAD_S_MAX:g} s") from None
        except (BrokenPipeError, ConnectionResetError):
            raise SwitchError(_ENDED) from None
        except OSError as error:
            raise SwitchError(f"cannot send to the serving process: {error.strerror}") from None
        finally:
            del self._pending[kind]

    def _answer(self, report: Answer) -> None:
        digest, answer = self._pending.get(type(report), (b"", None))
        if answer is not None and digest == report.digest and not answer.done():
            answer.set_result(report)

    def _fail(self, digest: bytes | None, error: SwitchError) -> None:
        """Fails the pending requests about that version, or all of them."""
        for asked, answer in self._pending.values():
            if digest in (None, asked) and not answer.done():
                answer.set_exception(error)

    def _start(self, alone: bool) -> None:
        for path in self._socket_paths():
            clear_socket_path(path, self._settings.data.group_id())
        self.page.cells[metrics_page.PHASE] = Phase.STARTING
        if alone and self.version_table.beside():
            self._log.error("versions_left_out", policies=[str(version) for version in self.version_table.beside()])
        self.version_table.restart(alone)
        for version in self.version_table:
            self.page.clear(version.metrics_index)
        self._epoch = max(self._epoch + 1, time.time_ns() // 1_000_000)
        self.starts += 1
        self._end, serving_end = channel.make_channel()
        with serving_end:
            sealed = [each for version in self.version_table for each in version.descriptors()]
            descriptors = (serving_end.fileno(), self._page_descriptor, *sealed)
            self._process = self._spawner.spawn(
                [sys.executable, "-P", "-m", "pilliond.serving", str(serving_end.fileno()), str(os.getpid())],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **CHILD_ENVIRONMENT},
            )
        channel.send(self._end, self._startup_config())

    def _socket_paths(self) -> list[str]:
        paths = map(socket_path, self._settings.data_addresses())
        return [path for path in paths if path is not None]

    def _startup_config(self) -> StartupConfig:
        stable = self.stable
        return StartupConfig(
            epoch=self._epoch,
            listen=self._settings.data_addresses(),
            version=stable.request(),
            model_descriptor=stable.model_descriptor,
            golden_descriptor=stable.golden_descriptor,
            page_descriptor=self._page_descriptor,
            engine=self._settings.engine,
            limits=self._settings.limits,
            serving=self._settings.serving,
            residency=self._settings.versions,
            watch_s=self._settings.auto_rollback.watch_s,
            certificate=self._settings.staging.certificate,
            group=self._settings.data.group_id(),
            beside=[
                Beside(version.request(), version.model_descriptor, version.golden_descriptor)
                for version in self.version_table.beside()
            ],
            arms=self.version_table.arms,
            held=sorted(self.version_table.held),
        )

    async def _watch(self, on_ready: Callable[[Ready], None]) -> bool:
        """Reads the reports of the serving process until it ends; returns whether it was ever ready."""
        timer = asyncio.get_running_loop().call_later(self._start_s_max(), self._kill, "it was not ready in time")
        was_ready = False
        try:
            while (report := await self._next_report()) is not None:
                match report:
                    case Ready():
                        timer.cancel()
                        was_ready = True
                        self.restarts.became_ready(time.monotonic_ns())
                        self.ready = report
                        self.version_table.certify(report.certificates)
                        self._socket_files = [SocketFile(path) for path in self._socket_paths()]
                        self._refuse(report.refused)
                        on_ready(report)
                        self.on_serving()
                    case Failed():
                        raise StartRefusedError(report.message, report.exit_code)
                    case Loaded() | Warmed() | SessionList():
                        self._answer(report)
                    case LoadFailed():
                        self._fail(report.digest, SwitchError(report.message))
                    case Switched():
                        self.version_table.switch(report.digest)
                        self._answer(report)
                    case Routed():
                        self.version_table.arms = report.arms
                        self._answer(report)
                    case Held():
                        self._note_held(report)
                    case Shadowed():
                        self._note_shadowed(report)
                    case Unloaded():
                        self._log_unloaded(report)
                        self.version_table.remove(report.digest)
                    case Event():
                        self._log.warning(report.name, **report.fields)
        finally:
            timer.cancel()
        return was_ready

    def _note_held(self, report: Held) -> None:
        if report.error:
            self._fail(report.digest, SwitchError(report.error))
            return
        self.version_table.held = set(report.digests)
        self._answer(report)

    def _start_s_max(self) -> float:
        return START_S_MAX * (1 + len(self.version_table.beside()))

    def _refuse(self, refused: Sequence[LoadFailed]) -> None:
        """Releases the versions that the serving process could not load at its start."""
        for failed in refused:
            version = self.version_table.find(failed.digest)
            self._log.error("version_not_resumed", policy=str(version), error=failed.message)
            self.version_table.refuse(failed.digest)

    def _note_shadowed(self, report: Shadowed) -> None:
        if not report.error:
            self._answer(report)
        elif Shadowed in self._pending:
            self._fail(report.digest, SwitchError(report.error))
        else:
            self._log.error("shadow_gets_nothing", error=report.error)

    def _log_unloaded(self, report: Unloaded) -> None:
        version = self.version_table.find(report.digest)
        if version is not None:
            self._log.info("version_unloaded", version=str(version), digest=version.digest, leases=report.leases)

    async def _next_report(self) -> channel.Report | None:
        try:
            return await channel.receive_report(self._end)
        except msgspec.MsgspecError as error:
            self._kill(f"it sent an unreadable report: {error}")
            return None

    async def _reap(self) -> int:
        """Waits until the serving process has ended; returns its exit code."""
        assert self._process is not None
        self._fail(None, SwitchError(_ENDED))
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


def _nothing() -> None:
    pass
