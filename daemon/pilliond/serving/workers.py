"""The versions that run in workers: gets them a worker, replaces lost ones, and passes on what they complete.

The control process starts and ends the workers; this side says when it needs one. Nothing here waits, but for `start`.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from pillion_protocol import ErrorCode, RemoteProtocolError
from pillion_protocol.action_steps import DeviceTimes
from pillion_worker.arena import OK
from pilliond.core.progress import Progress
from pilliond.engine.interface import EngineError
from pilliond.engine.worker import WorkerEngine, WorkerState
from pilliond.errors import StartCancelledError
from pilliond.ipc import control_channel as channel
from pilliond.ipc.control_channel import (
    Drain,
    GiveUp,
    NeedWorker,
    Report,
    VersionRequest,
    WorkerReady,
    WorkerStarted,
)
from pilliond.ipc.loss_cause import LossCause
from pilliond.limits import WORKER_HANG_FACTOR
from pilliond.settings.schema import EngineSettings
from pilliond.transport.interface import MessagePoller
from pilliond.versions.loaded_version import Version
from pilliond.versions.loader import version_of, worker_engine

if TYPE_CHECKING:
    from pilliond.engine.batch_memory import BatchMemory

_NS_PER_MS: Final = 1_000_000
_NS_PER_S: Final = 1_000_000_000
_OUT: Final = "the engine of this version keeps failing"
_NO_DESCRIPTOR: Final = "no descriptor was left for its worker"
_DESCRIPTORS: Final = 2
"""What comes with `WorkerStarted`: the model, and an end of the channel. The kernel drops those that find no room."""


class BatchSink(Protocol):
    """The serving loop, as far as workers need it."""

    def complete(self, memory: BatchMemory, message: str | None, times: DeviceTimes) -> None:
        """Takes the outcome of a run, and how long a device took for it; a message says why it failed."""

    def lose(self, memories: Sequence[BatchMemory]) -> int:
        """Takes the runs that a lost worker had not completed; returns how many acts of them will run again."""

    def take_convicted(self, version: Version) -> list[int]:
        """Returns the numbers of the sessions whose acts have ended a worker of a version since the last call."""

    def refuse(self, version: Version, error: RemoteProtocolError) -> None:
        """Answers everything that waits for a version with an error."""


class WorkerVersion:
    """One version that runs in a worker, from the first request for a worker until it is unloaded."""

    def __init__(
        self, request: VersionRequest, model_bytes: int, settings: EngineSettings, engine: WorkerEngine
    ) -> None:
        self.request = request
        self.model_bytes = model_bytes
        self.settings = settings
        self.engine = engine
        self.version: Version | None = None
        """The version, once its first worker was ready."""
        self.batches = 0
        """Batches that its worker has completed."""
        self.began_ns = 0
        self.progress = Progress()
        self.convicted: set[int] = set()
        """The numbers of the sessions whose acts have ended its workers since one completed a batch."""

    def convict(self, sessions: list[int]) -> bool:
        """Takes the sessions whose acts ended its worker; returns whether all have done so since a batch was completed."""
        if self.batches:
            self.convicted.clear()
        is_repeat = bool(sessions) and self.convicted.issuperset(sessions)
        self.convicted.update(sessions)
        return is_repeat

    @property
    def hang_ns(self) -> int:
        """How long its worker may take for what it owes."""
        if self.engine.state is WorkerState.LOADING:
            return int(self.settings.start_s_max * _NS_PER_S)
        slowest_ns = self.engine.service.slow_ns(self.engine.buckets[-1])
        return max(self.settings.hang_ms_min * _NS_PER_MS, WORKER_HANG_FACTOR * slowest_ns)


class Workers:
    """Every version of this process that runs in a worker. Owns their engines, not the processes behind them.

    `report` sends a report to the control process. `code` is `trust.code`. `sink` is the serving loop, once there is one.
    """

    def __init__(
        self,
        end: socket.socket,
        poller: MessagePoller,
        report: Callable[[Report], None],
        clock: Callable[[], int] = time.monotonic_ns,
        code: Sequence[str] = (),
    ) -> None:
        self.sink: BatchSink | None = None
        self.on_loaded: Callable[[WorkerVersion, str], None] = _ignore
        """Called when a version that `load` began has its first worker, or with the reason why it has none."""
        self._end = end
        self._poller = poller
        self._report = report
        self._clock = clock
        self._code = code
        self._versions: dict[bytes, WorkerVersion] = {}
        self._by_engine: dict[WorkerEngine, WorkerVersion] = {}

    def set_report(self, report: Callable[[Report], None]) -> None:
        """Sends reports this way from now on: the loop must not wait for the control process to read."""
        self._report = report

    # Loading

    def start(self, request: VersionRequest, model_bytes: int, rows_max: int, settings: EngineSettings) -> Version:
        """Gets a version its first worker, and waits for it: before the loop runs. Raises `EngineError`."""
        worker = self._add(request, model_bytes, rows_max, settings)
        try:
            while worker.engine.state is not WorkerState.READY:
                self._start_one(worker)
        except EngineError:
            self.close_version(request.digest)
            raise
        return self._make_version(worker)

    def _start_one(self, worker: WorkerVersion) -> None:
        """Waits for one worker; asks for the next if it ends before it is ready.

        Raises `EngineError` if none is to come, and `StartCancelledError` if the daemon is to stop meanwhile.
        """
        digest, engine = worker.request.digest, worker.engine
        message, descriptors = channel.receive_control_message(self._end)
        while isinstance(message, WorkerStarted | GiveUp) and message.digest != digest:
            # It is about one that was ready and was lost while the versions after it load.
            if isinstance(message, GiveUp):
                self.give_up(message)
            else:
                self.started(message, descriptors)
            message, descriptors = channel.receive_control_message(self._end)
        if message is None or isinstance(message, Drain):
            raise StartCancelledError("the daemon is stopping")
        if isinstance(message, GiveUp):
            raise EngineError(message.reason)
        assert isinstance(message, WorkerStarted), message
        if not self._attach(worker, descriptors):
            return
        try:
            engine.wait_ready(worker.settings.start_s_max, self._check_goes_on)
        except EngineError as error:
            if engine.is_refused:
                raise
            self._report(NeedWorker(digest, str(error), cause=engine.cause))

    def _check_goes_on(self) -> None:
        if channel.is_to_stop(self._end):
            raise StartCancelledError("the daemon is stopping")

    def load(self, request: VersionRequest, model_bytes: int, rows_max: int, settings: EngineSettings) -> None:
        """Begins to load a version in a worker; `on_loaded` follows. Raises `EngineError` if it loads already."""
        if request.digest in self._versions:
            raise EngineError("it is being loaded already")
        self._add(request, model_bytes, rows_max, settings)

    def started(self, message: WorkerStarted, descriptors: list[int]) -> None:
        """Attaches a worker that the control process has started: for a lost one, or for a version that was out."""
        worker = self._versions.get(message.digest)
        if worker is not None and worker.engine.state is WorkerState.OUT:
            worker.engine.revive()
        if worker is None or worker.engine.state is not WorkerState.LOST:
            _close_all(descriptors)
            return
        self._attach(worker, descriptors)

    def abandon(self, digest: bytes) -> None:
        """Releases the engine of a version that is still loading; `on_loaded` does not follow."""
        worker = self._versions.get(digest)
        if worker is not None and worker.version is None:
            self.close_version(digest)

    def give_up(self, message: GiveUp) -> None:
        """Takes a version out: what waits for it is refused, and what comes for it too."""
        worker = self._versions.get(message.digest)
        if worker is None:
            return
        if worker.version is None:
            self.close_version(message.digest)
            self.on_loaded(worker, message.reason)
            return
        if worker.engine.state is WorkerState.OUT:
            # Another try of a version that was out did not get as far as a worker.
            worker.engine.reason = message.reason
        else:
            worker.engine.give_up(message.reason)
        worker.version.out = RemoteProtocolError(ErrorCode.ENGINE_OUT, f"{_OUT}: {message.reason}")
        if self.sink is not None:
            self.sink.refuse(worker.version, worker.version.out)

    def close_version(self, digest: bytes) -> None:
        """Releases the engine of a version, if it runs in a worker."""
        worker = self._versions.pop(digest, None)
        if worker is not None:
            del self._by_engine[worker.engine]
            worker.engine.close()

    def close(self) -> None:
        """Releases every engine."""
        for digest in list(self._versions):
            self.close_version(digest)

    # Watching

    def judge(self) -> None:
        """Ends the workers that hang: their progress counts, not a sign of life. Call it on every tick."""
        now_ns = self._clock()
        for worker in list(self._versions.values()):
            worker.progress.look(worker.engine.owes_since_ns, now_ns)
            owed_ns = worker.progress.owed_ns
            # A version without a worker owes nothing, and may have no service time yet.
            if owed_ns and owed_ns > worker.hang_ns:
                worker.engine.lose(f"it made no progress for {owed_ns // _NS_PER_MS} ms", LossCause.HUNG)

    # Inside

    def _add(self, request: VersionRequest, model_bytes: int, rows_max: int, settings: EngineSettings) -> WorkerVersion:
        engine = worker_engine(request, rows_max, settings, self._code, descriptors=self._poller, clock=self._clock)
        engine.on_ready = self._on_ready
        engine.on_completed = self._on_completed
        engine.on_lost = self._on_lost
        worker = self._versions[request.digest] = WorkerVersion(request, model_bytes, settings, engine)
        self._by_engine[engine] = worker
        worker.began_ns = self._clock()
        self._report(NeedWorker(request.digest))
        return worker

    def _attach(self, worker: WorkerVersion, descriptors: list[int]) -> bool:
        """Connects a worker; returns False, and asks for another, if this process had no room for its descriptors."""
        worker.batches = 0
        if len(descriptors) != _DESCRIPTORS:
            _close_all(descriptors)
            self._report(NeedWorker(worker.request.digest, _NO_DESCRIPTOR, cause=LossCause.ENDED))
            return False
        model, end = descriptors
        try:
            worker.engine.attach(socket.socket(fileno=end), model)
        finally:
            os.close(model)
        return True

    def _make_version(self, worker: WorkerVersion) -> Version:
        worker.version = version_of(worker.request, worker.engine, worker.model_bytes)
        return worker.version

    def _on_ready(self, engine: WorkerEngine) -> None:
        worker = self._by_engine[engine]
        if worker.version is not None:
            worker.version.out = None
            self._report(WorkerReady(worker.request.digest, engine.describe()))
        elif self.sink is not None:
            try:
                self._make_version(worker)
            except EngineError as error:
                self.close_version(worker.request.digest)
                self.on_loaded(worker, str(error))
            else:
                self.on_loaded(worker, "")

    def _on_completed(
        self,
        engine: WorkerEngine,
        memory: BatchMemory,
        outcome: int,
        message: str,
        started_ns: int,
        finished_ns: int,
        times: DeviceTimes,
    ) -> None:
        self._by_engine[engine].batches += 1
        assert self.sink is not None
        self.sink.complete(memory, message if outcome != OK else None, times)

    def _on_lost(self, engine: WorkerEngine, reason: str) -> None:
        worker = self._by_engine[engine]
        if self.sink is None:
            # `start`, or whoever runs batches before the loop does, waits for it and says why.
            return
        reruns = self.sink.lose([batch.memory for batch in engine.in_flight])
        is_repeat = worker.convict(self.sink.take_convicted(worker.version) if worker.version is not None else [])
        self._report(NeedWorker(worker.request.digest, reason, worker.batches, reruns, is_repeat, engine.cause))


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _ignore(worker: WorkerVersion, reason: str) -> None:
    pass
