"""The supervisor: starts the serving process, watches it, and restarts it when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import msgspec
from structlog.typing import FilteringBoundLogger

from pilliond.errors import DaemonError, NotReadyError, ServingDiedError, ServingGaveUpError, SwitchError
from pilliond.ipc import control_channel as channel
from pilliond.ipc import metrics_page
from pilliond.ipc.control_channel import (
    Drain,
    Event,
    Failed,
    Held,
    ListSessions,
    Load,
    Loaded,
    LoadFailed,
    NeedWorker,
    Ready,
    Routed,
    SessionList,
    Shadowed,
    StartupConfig,
    Switched,
    Unload,
    Unloaded,
    Warmed,
    WorkerReady,
)
from pilliond.ipc.device_status import device_status
from pilliond.ipc.metrics_page import POLICY_CELLS, MetricsPage, Phase, make_page
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.limits import (
    ANSWER_S_MAX,
    DRAIN_S_MAX,
    START_S_MAX,
)
from pilliond.linux.spawner import Spawner
from pilliond.settings.addresses import SocketFile, clear_socket_path, remove_dead_socket, socket_path
from pilliond.settings.schema import Settings
from pilliond.supervision.policy_channel import PolicyChannel
from pilliond.supervision.progress_watch import is_late
from pilliond.supervision.restart_policy import RestartPolicy
from pilliond.supervision.serving_process import ServingProcess
from pilliond.supervision.serving_state import ServingState, in_words, serving_state
from pilliond.supervision.version_table import VersionTable
from pilliond.supervision.worker_pool import WorkerPool
from pilliond.supervision.worker_start import FirstWorker
from pilliond.versions.placement import needs_worker

Answer = Loaded | Switched | Routed | Held | Warmed | Shadowed | SessionList
_ENDED: Final = "the serving process ended meanwhile"

R = TypeVar("R", Loaded, Switched, Routed, Held, Warmed, Shadowed, SessionList)


class StartRefusedError(DaemonError):
    """The serving process refuses to start."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Supervisor:
    """Owns the serving process, the metrics page and the channels of the policies, with the sealed versions.

    `stables` has the stable version of each policy, in the order of `settings.served()`. `first` is the first serving
    process, and `first_worker` the first worker of the default policy, if they were started already.

    Rule: there is one serving process at a time, and each start has a greater epoch than the last. For each policy it starts
    with the stable version, the arms and the held versions; after `RESTARTS_WITH_ALL_MAX` failed starts, with the stable
    versions alone. `RestartPolicy` decides whether and when.
    """

    def __init__(
        self,
        settings: Settings,
        stables: Sequence[SealedVersion],
        spawner: Spawner,
        log: FilteringBoundLogger,
        first: ServingProcess | None = None,
        first_worker: FirstWorker | None = None,
    ) -> None:
        self.policies = {
            stable.policy: PolicyChannel(self, own, VersionTable(stable, number), POLICY_CELLS[number])
            for number, (own, stable) in enumerate(zip(settings.served(), stables, strict=True))
        }
        """By name, the default policy first."""
        self.starts = 0
        self.restarts = RestartPolicy(settings.serving.restarts_max, settings.serving.restarts_window_s)
        self.ready: Ready | None = None
        self._settings = settings
        self._spawner = spawner
        self._first = first
        self._first_worker = first_worker
        self._log = log
        self._page_descriptor = make_page()
        self.page = MetricsPage(self._page_descriptor)
        self._pending: dict[type[Answer], tuple[bytes, asyncio.Future[Any]]] = {}
        """Requests without an answer yet: by the kind of report, the digest asked about and the future of the answer."""
        self._turns: dict[type[Answer], asyncio.Lock] = {}
        """Requests of several policies for one kind of report wait for each other."""
        self._epoch = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Any = None
        self._stopping: str | None = None
        self._socket_files: list[SocketFile] = []
        self._has_unknown_sockets = False
        """Whether the last serving process may have bound sockets without saying so: it was not ready yet."""
        self.workers = WorkerPool(spawner, self.tell, log)
        self.loading: dict[bytes, SealedVersion] = {}
        """The versions that the serving process was asked to load, until it has."""

    @property
    def default(self) -> PolicyChannel:
        """The policy of a session that names none."""
        return next(iter(self.policies.values()))

    def versions(self) -> list[SealedVersion]:
        """Returns the loaded versions of all policies."""
        return [version for policy in self.policies.values() for version in policy.version_table]

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

    def start(self) -> None:
        """Starts a serving process; it loads the versions while this process does other work. Raises `OSError`."""
        self.restarts.started()
        self._start(alone=self.restarts.starts_alone)

    async def run(self, on_ready: Callable[[Ready], None]) -> None:
        """Keeps a serving process up, the first of which was started, until `stop`.

        Raises `DaemonError` if it does not stay up.
        """
        while True:
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
            if self.starts == 1 and not was_ready and not self._beside():
                raise ServingDiedError(f"the serving process ended with {code} before it was ready")
            await self._pause(code)
            if self._stopping is not None:
                return
            self.start()

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

    async def sessions(self, after: int) -> SessionList:
        """Returns some sessions that were opened after session number `after`; raises `SwitchError`."""
        return await self.ask(ListSessions(after), SessionList, b"sessions")

    def close(self) -> None:
        """Releases the page, the sealed versions and the socket files, and kills a serving process that nobody waits for."""
        try:
            self._end_process()
        finally:
            self._remove_sockets()
            self.page.close()
            os.close(self._page_descriptor)
            for policy in self.policies.values():
                policy.version_table.close()

    def check_is_ready(self) -> None:
        """Raises `NotReadyError` if there is no serving process that answers control messages."""
        if self._end is None and self.phase is Phase.READY:
            raise NotReadyError(_ENDED)
        if not self.is_ready:
            raise NotReadyError(f"the serving process is {self.phase.name.lower()}, not ready")

    def tell(self, message: channel.ControlMessage, descriptors: Sequence[int] = ()) -> None:
        """Sends a control message that needs no answer, if there is a serving process; raises `OSError`."""
        if self._end is not None:
            channel.send(self._end, message, descriptors)

    async def ask(
        self, message: channel.ControlMessage, kind: type[R], digest: bytes, descriptors: Sequence[int] = ()
    ) -> R:
        """Sends a control message and waits for the report that answers it; raises `SwitchError`.

        One message per kind of report is under way at a time: those of other policies wait for their turn.
        """
        async with self._turns.setdefault(kind, asyncio.Lock()):
            self.check_is_ready()
            return await self._ask(message, kind, digest, descriptors)

    async def _ask(
        self, message: channel.ControlMessage, kind: type[R], digest: bytes, descriptors: Sequence[int]
    ) -> R:
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._pending[kind] = (digest, answer)
        most_s = ANSWER_S_MAX
        if isinstance(message, Load):
            most_s = self.policies[message.version.policy].settings.engine.load_s_max
        try:
            channel.send(self._end, message, descriptors)
            return await asyncio.wait_for(answer, most_s)
        except TimeoutError:
            raise SwitchError(f"the serving process did not answer within {most_s:g} s") from None
        except (BrokenPipeError, ConnectionResetError):
            raise SwitchError(_ENDED) from None
        except OSError as error:
            raise SwitchError(f"cannot send to the serving process: {error.strerror}") from None
        finally:
            del self._pending[kind]
            if answer.cancelled() and isinstance(message, Load):
                self._abandon(digest)

    def _abandon(self, digest: bytes) -> None:
        """Makes the serving process drop a version that nobody here waits for any more."""
        # If this cannot be sent, the next report about that version sends it again.
        with contextlib.suppress(OSError):
            self.tell(Unload(digest))

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
        self._socket_files, self._has_unknown_sockets = [], True
        self.page.cells[metrics_page.PHASE] = Phase.STARTING
        if alone and self._beside():
            self._log.error("versions_left_out", policies=[str(version) for version in self._beside()])
        for policy in self.policies.values():
            policy.version_table.restart(alone)
        for version in self.versions():
            self.page.clear(version.metrics_index)
        self._epoch = max(self._epoch + 1, time.time_ns() // 1_000_000)
        self.starts += 1
        serving, self._first = self._first or self._new_process(), None
        self._end, self._process = serving.end, serving.process
        # One that has ended already is found dead by `run`.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            channel.send_startup(self._end, self._startup_config())
            self._start_first_worker()

    def _new_process(self) -> ServingProcess:
        return ServingProcess(self._spawner, may_run_inline=self._settings.may_run_inline)

    def _start_first_worker(self) -> None:
        """Starts the worker of the version that the serving process loads first, if it is sure to ask for one.

        Only that one: it takes what comes for another version as news of a version that it has.
        """
        stable, engine = self.default.stable, self.default.settings.engine
        kind = stable.card.engine.kind
        if needs_worker(engine.placement, kind, engine.devices, stable.unbounded, stable.placement):
            self.workers.start_first(stable, engine, self._first_worker.take() if self._first_worker else None)

    def _socket_paths(self) -> list[str]:
        paths = map(socket_path, self._settings.data_addresses())
        return [path for path in paths if path is not None]

    def _startup_config(self) -> StartupConfig:
        return StartupConfig(
            epoch=self._epoch,
            listen=self._settings.data_addresses(),
            policies=[policy.config() for policy in self.policies.values()],
            page_descriptor=self._page_descriptor,
            serving=self._settings.serving,
            sessions_max=self._settings.limits.sessions_max,
            group=self._settings.data.group_id(),
            code=self._settings.trust.code,
        )

    def _beside(self) -> list[SealedVersion]:
        """Returns the versions of all policies that a new serving process starts with beside the stable ones."""
        return [version for policy in self.policies.values() for version in policy.version_table.beside()]

    def _table_of(self, digest: bytes) -> VersionTable | None:
        """Returns the table of the policy that has a version loaded; None if none has. A digest is that of one policy only."""
        tables = [policy.version_table for policy in self.policies.values()]
        return next((table for table in tables if table.find(digest) is not None), None)

    def _drop(self, report: NeedWorker | WorkerReady | Loaded | Switched | Routed | Unloaded) -> None:
        """Notes a report about a version that is unknown here: its load was abandoned meanwhile."""
        self._log.debug("report_dropped", report=type(report).__name__, digest=f"sha256:{report.digest.hex()}")

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
                        self._socket_files = [SocketFile(path) for path in self._socket_paths()]
                        self._has_unknown_sockets = False
                        self._note_ready(report)
                        on_ready(report)
                        self._resume_shadows()
                    case Failed():
                        raise StartRefusedError(report.message, report.exit_code)
                    case NeedWorker() | WorkerReady() | Loaded():
                        self._note_worker(report)
                    case Warmed() | SessionList():
                        self._answer(report)
                    case LoadFailed():
                        self._fail(report.digest, SwitchError(report.message))
                    case Switched() | Routed():
                        self._note_route(report)
                    case Held():
                        self._note_held(report)
                    case Shadowed():
                        self._note_shadowed(report)
                    case Unloaded():
                        self._note_unloaded(report)
                    case Event():
                        self._log.warning(report.name, **report.fields)
        finally:
            timer.cancel()
        return was_ready

    def _note_route(self, report: Switched | Routed) -> None:
        table = self._table_of(report.digest)
        if table is None:
            self._drop(report)
            return
        if isinstance(report, Switched):
            table.switch(report.digest)
        else:
            table.arms = report.arms
        self._answer(report)

    def _note_worker(self, report: NeedWorker | WorkerReady | Loaded) -> None:
        version = self._version(report.digest)
        if version is None:
            self._drop(report)
            self._abandon(report.digest)
            return
        match report:
            case NeedWorker():
                self.workers.need(report, version, self.policies[version.policy].settings.engine)
            case WorkerReady():
                self._note_engine(version, report.engine)
                self.workers.ready(report)
            case Loaded():
                self._note_engine(version, report.engine)
                self.workers.loaded(report.digest)
                self._answer(report)

    def _note_engine(self, version: SealedVersion, engine: dict[str, Any]) -> None:
        """Notes how the engine of a version describes itself; logs what it does not do, unless that was logged of it before."""
        before, version.engine = device_status(version.engine), engine
        now = device_status(engine)
        if now.fallback not in ("", before.fallback):
            self._log.warning("falls_back", version=str(version), **now.for_log())

    def _version(self, digest: bytes) -> SealedVersion | None:
        """Returns a version that is loaded or being loaded; None if it is neither."""
        table = self._table_of(digest)
        return self.loading.get(digest) or (table.find(digest) if table is not None else None)

    def _note_held(self, report: Held) -> None:
        if report.error:
            self._fail(report.digest, SwitchError(report.error))
            return
        self.policies[report.policy].version_table.held = set(report.digests)
        self._answer(report)

    def _start_s_max(self) -> float:
        """How long the serving process may take until it is ready: it loads one version, and waits for one worker, after the other."""
        return sum(
            max(START_S_MAX, policy.settings.engine.start_s_max * len(policy.settings.engine.devices))
            * (1 + len(policy.version_table.beside()))
            for policy in self.policies.values()
        )

    def _resume_shadows(self) -> None:
        for policy in self.policies.values():
            policy.on_serving()

    def _note_ready(self, report: Ready) -> None:
        """Notes the certificates, and releases the versions that the serving process could not load at its start."""
        for policy in self.policies.values():
            policy.version_table.certify(report.certificates, report.placements)
        for version in self.versions():
            self._note_engine(version, report.engines.get(version.key, version.engine))
        for digest in report.placements:
            self.workers.loaded(digest)
        for failed in report.refused:
            table = self._table_of(failed.digest)
            assert table is not None
            self._log.error("version_not_resumed", policy=str(table.find(failed.digest)), error=failed.message)
            table.refuse(failed.digest)
            self.workers.end(failed.digest)

    def _note_shadowed(self, report: Shadowed) -> None:
        if not report.error:
            self._answer(report)
        elif Shadowed in self._pending:
            self._fail(report.digest, SwitchError(report.error))
        else:
            self._log.error("shadow_gets_nothing", error=report.error)

    def _note_unloaded(self, report: Unloaded) -> None:
        table = self._table_of(report.digest)
        if table is None:
            self._drop(report)
            return
        version, digest = table.find(report.digest), f"sha256:{report.digest.hex()}"
        self._log.info("version_unloaded", version=str(version), digest=digest, leases=report.leases)
        table.remove(report.digest)
        self.workers.end(report.digest)

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
        self.workers.close()
        self._end.close()
        self._end = None
        code = await asyncio.to_thread(self._process.wait)
        await asyncio.to_thread(self.workers.wait_ended)
        self._process = None
        self.ready = None
        cells = self.page.cells
        cells[metrics_page.PHASE] = Phase.STOPPED if self._stopping is not None else Phase.FAILED
        for gauge in metrics_page.GAUGES:
            cells[gauge] = 0
        return code

    def _end_process(self) -> None:
        """Ends the serving process, if there is one: when the start of the daemon fails."""
        if self._first is not None:
            self._first.close()
        if self._first_worker is not None:
            self._first_worker.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        # `_reap` closes it before the process has ended.
        if self._end is not None:
            self._end.close()
        self.workers.close()
        self.workers.wait_ended()

    def _remove_sockets(self) -> None:
        for file in self._socket_files:
            file.remove()
        if self._has_unknown_sockets:
            # Those there were before the start are gone. Where another daemon listens by now, it answers.
            for path in self._socket_paths():
                remove_dead_socket(path)

    def _kill(self, why: str) -> None:
        if self._process is not None:
            self._log.error("serving_killed", reason=why)
            self._process.kill()
