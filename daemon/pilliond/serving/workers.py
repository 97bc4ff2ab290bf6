"""The versions that run in workers: gets them workers, replaces lost ones, and passes on what they complete.

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
from pilliond.limits import PolicyLimits
from pilliond.serving.worker_version import WorkerReplica, WorkerVersion
from pilliond.settings.schema import EngineSettings
from pilliond.transport.interface import MessagePoller
from pilliond.versions.loaded_version import Version
from pilliond.versions.loader import settings_of_workers, version_of, worker_engine

if TYPE_CHECKING:
    from pilliond.engine.batch_memory import BatchMemory

_BYTES_PER_MB: Final = 1_000_000
_NS_PER_MS: Final = 1_000_000
_OUT: Final = "the engine of this version keeps failing"
_NO_DESCRIPTOR: Final = "no descriptor was left for its worker"


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
        """Called when a version that `load` began has its first workers, or with the reason why it has none."""
        self._end = end
        self._poller = poller
        self._report = report
        self._clock = clock
        self._code = code
        self._versions: dict[bytes, WorkerVersion] = {}
        self._by_engine: dict[WorkerEngine, WorkerReplica] = {}

    def set_report(self, report: Callable[[Report], None]) -> None:
        """Sends reports this way from now on: the loop must not wait for the control process to read."""
        self._report = report

    # Loading

    def start(
        self, request: VersionRequest, model_bytes: int, limits: PolicyLimits, settings: EngineSettings
    ) -> Version:
        """Gets a version its first workers, and waits for them: before the loop runs. Raises `EngineError`."""
        worker = self._add(request, model_bytes, limits, settings)
        try:
            while not worker.is_settled:
                # All load at the same time, so none is waited for while another one is not there yet.
                if any(replica.engine.state is WorkerState.LOST for replica in worker.replicas):
                    self._receive_one(worker)
                else:
                    self._wait_for_one(worker)
        except EngineError:
            self.close_version(request.digest)
            raise
        return self._make_version(worker)

    def _receive_one(self, worker: WorkerVersion) -> None:
        """Waits for the process of one worker, or for the news that there is to be none.

        Raises `EngineError` if the version cannot be made, and `StartCancelledError` if the daemon is to stop meanwhile.
        """
        digest = worker.request.digest
        message, descriptors = channel.receive_control_message(self._end)
        if message is None or isinstance(message, Drain):
            raise StartCancelledError("the daemon is stopping")
        assert isinstance(message, WorkerStarted | GiveUp), message
        if message.digest != digest:
            # It is about one that was ready and was lost while the versions after it load.
            if isinstance(message, GiveUp):
                self.give_up(message)
            else:
                self.started(message, descriptors)
            return
        replica = worker.replicas[message.replica]
        if isinstance(message, WorkerStarted):
            self._attach(replica, descriptors)
            return
        replica.engine.give_up(message.reason)
        if worker.is_refused:
            raise EngineError(worker.name_loss(replica, message.reason))

    def _wait_for_one(self, worker: WorkerVersion) -> None:
        """Waits for a worker that loads; asks for the next if it ends before it is ready.

        Raises `EngineError` if the version is refused, and `StartCancelledError` if the daemon is to stop meanwhile.
        """
        replica = next(replica for replica in worker.replicas if replica.engine.state is WorkerState.LOADING)
        engine = replica.engine
        try:
            engine.wait_ready(worker.settings.start_s_max, self._check_goes_on)
        except EngineError as error:
            if engine.is_refused and (not worker.several or worker.settings.device_required):
                raise EngineError(worker.name_loss(replica, str(error))) from None
            self._report(NeedWorker(worker.request.digest, str(error), cause=engine.cause, replica=replica.number))

    def _check_goes_on(self) -> None:
        if channel.is_to_stop(self._end):
            raise StartCancelledError("the daemon is stopping")

    def load(self, request: VersionRequest, model_bytes: int, limits: PolicyLimits, settings: EngineSettings) -> None:
        """Begins to load a version in a worker; `on_loaded` follows. Raises `EngineError` if it loads already."""
        if request.digest in self._versions:
            raise EngineError("it is being loaded already")
        self._add(request, model_bytes, limits, settings)

    def started(self, message: WorkerStarted, descriptors: list[int]) -> None:
        """Attaches a worker that the control process has started: for a lost one, or for one that was out."""
        worker = self._versions.get(message.digest)
        replica = None if worker is None else worker.replicas[message.replica]
        if replica is not None and replica.engine.state is WorkerState.OUT:
            replica.engine.revive()
        if replica is None or replica.engine.state is not WorkerState.LOST:
            _close_all(descriptors)
            return
        self._attach(replica, descriptors)

    def abandon(self, digest: bytes) -> None:
        """Releases the engine of a version that is still loading; `on_loaded` does not follow."""
        worker = self._versions.get(digest)
        if worker is not None and worker.version is None:
            self.close_version(digest)

    def give_up(self, message: GiveUp) -> None:
        """Takes a worker out. If no other is left, its version is out: what waits and comes for it is refused."""
        worker = self._versions.get(message.digest)
        if worker is None:
            return
        replica = worker.replicas[message.replica]
        # One that is out already gets another reason: a new try did not get as far as a worker.
        replica.engine.give_up(message.reason)
        reason = worker.name_loss(replica, message.reason)
        if worker.version is None:
            if worker.is_refused:
                self.close_version(message.digest)
                self.on_loaded(worker, reason)
            elif worker.is_settled:
                self._finish(worker)
        elif worker.is_out:
            worker.version.out = RemoteProtocolError(ErrorCode.ENGINE_OUT, f"{_OUT}: {reason}")
            if self.sink is not None:
                self.sink.refuse(worker.version, worker.version.out)

    def close_version(self, digest: bytes) -> None:
        """Releases the engines of a version, if it runs in workers."""
        worker = self._versions.pop(digest, None)
        for replica in [] if worker is None else worker.replicas:
            del self._by_engine[replica.engine]
            replica.engine.close()

    def close(self) -> None:
        """Releases every engine."""
        for digest in list(self._versions):
            self.close_version(digest)

    # Watching

    def judge(self) -> None:
        """Ends the workers that hang: their progress counts, not a sign of life. Call it on every tick."""
        now_ns = self._clock()
        for replica in list(self._by_engine.values()):
            replica.progress.look(replica.engine.owes_since_ns, now_ns)
            owed_ns = replica.progress.owed_ns
            # One without a worker owes nothing, and may have no service time yet.
            if owed_ns and owed_ns > replica.hang_ns:
                replica.engine.lose(f"it made no progress for {owed_ns // _NS_PER_MS} ms", LossCause.HUNG)

    # Inside

    def _add(
        self, request: VersionRequest, model_bytes: int, limits: PolicyLimits, settings: EngineSettings
    ) -> WorkerVersion:
        each = settings_of_workers(request, settings)
        missed = _fallback(settings) if len(each) < len(settings.devices) else ""
        engines = [
            worker_engine(
                request,
                limits.rows_max,
                own,
                self._code,
                descriptors=self._poller,
                clock=self._clock,
                missed=missed,
                states_bytes_max=limits.states_mb_max * _BYTES_PER_MB,
            )
            for own in each
        ]
        worker = WorkerVersion(request, model_bytes, settings, engines, self._clock)
        self._versions[request.digest] = worker
        worker.began_ns = self._clock()
        for replica in worker.replicas:
            engine = replica.engine
            engine.on_ready = self._on_ready
            engine.on_completed = self._on_completed if worker.several is None else self._on_completed_of_several
            engine.on_lost = self._on_lost
            self._by_engine[engine] = replica
            self._report(NeedWorker(request.digest, replica=replica.number))
        return worker

    def _attach(self, replica: WorkerReplica, descriptors: list[int]) -> None:
        """Connects a worker; asks for another, if this process had no room for its descriptors or if it has ended already."""
        replica.batches = 0
        digest, engine = replica.of.request.digest, replica.engine
        if not descriptors:
            self._report(NeedWorker(digest, _NO_DESCRIPTOR, cause=LossCause.SHORTAGE, replica=replica.number))
            return
        model, end = descriptors
        try:
            engine.attach(socket.socket(fileno=end), model)
        finally:
            os.close(model)
        if self.sink is None and engine.state is WorkerState.LOST:
            # `start` reports only one that ends while it loads, and would wait for ever for the next one.
            self._report(NeedWorker(digest, engine.reason, cause=engine.cause, replica=replica.number))

    def _make_version(self, worker: WorkerVersion) -> Version:
        worker.version = version_of(worker.request, worker.engine, worker.model_bytes)
        return worker.version

    def _finish(self, worker: WorkerVersion) -> None:
        """Makes the version that `load` began."""
        try:
            self._make_version(worker)
        except EngineError as error:
            self.close_version(worker.request.digest)
            self.on_loaded(worker, str(error))
        else:
            self.on_loaded(worker, "")

    def _on_ready(self, engine: WorkerEngine) -> None:
        replica = self._by_engine[engine]
        worker = replica.of
        if worker.several is not None:
            worker.several.became_ready(engine)
        if worker.version is not None:
            worker.version.out = None
            self._report(WorkerReady(worker.request.digest, worker.engine.describe(), replica.number))
        elif self.sink is not None and worker.is_settled:
            self._finish(worker)

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

    def _on_completed_of_several(
        self,
        engine: WorkerEngine,
        memory: BatchMemory,
        outcome: int,
        message: str,
        started_ns: int,
        finished_ns: int,
        times: DeviceTimes,
    ) -> None:
        several = self._by_engine[engine].of.several
        assert several is not None
        several.ran(memory, finished_ns - started_ns)
        self._on_completed(engine, memory, outcome, message, started_ns, finished_ns, times)

    def _on_lost(self, engine: WorkerEngine, reason: str) -> None:
        replica = self._by_engine[engine]
        worker = replica.of
        if self.sink is None:
            # `start`, or whoever runs batches before the loop does, waits for it and says why.
            return
        reruns = self.sink.lose([batch.memory for batch in engine.in_flight])
        sessions = self.sink.take_convicted(worker.version) if worker.version is not None else []
        is_repeat = worker.convict(replica, sessions)
        digest, number = worker.request.digest, replica.number
        self._report(NeedWorker(digest, reason, replica.batches, reruns, is_repeat, engine.cause, number))


def _fallback(settings: EngineSettings) -> str:
    return f"{' and '.join(settings.devices)} were asked for: a recurrent version runs on one device"


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _ignore(worker: WorkerVersion, reason: str) -> None:
    pass
