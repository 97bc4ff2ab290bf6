"""The versions that run in workers, as the control process asks for them; a test is in place of the control process."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest

from pillion_artifacts.card.model_card import StateCard, Tolerance
from pillion_protocol import RemoteProtocolError
from pillion_protocol.action_steps import DeviceTimes
from pilliond.engine.batch_memory import BatchMemory
from pilliond.engine.replicas import ReplicaEngine
from pilliond.engine.worker import WorkerEngine, WorkerState
from pilliond.ipc import control_channel as channel
from pilliond.ipc.control_channel import (
    GiveUp,
    Load,
    Loaded,
    LoadFailed,
    NeedWorker,
    Report,
    Unload,
    VersionRequest,
    WorkerReady,
    WorkerStarted,
)
from pilliond.ipc.loss_cause import LossCause
from pilliond.ipc.placement import Placement
from pilliond.serving.control_handler import ControlHandler
from pilliond.serving.workers import Workers
from pilliond.settings.schema import EngineSettings
from pilliond.transport.interface import MessagePoller
from pilliond.versions.loaded_version import Version
from tests.daemon.support.fakes import DIGEST, GAUSSIAN, SPEC
from tests.daemon.support.residency_plane import ResidencyPlane
from tests.daemon.support.simulated_worker import complete_oldest, make_ready
from tests.worker.support.processes import sealed

OTHER = bytes([7]) + DIGEST[1:]


def request(digest: bytes = OTHER) -> VersionRequest:
    placement = Placement("worker", "a test says so")
    return VersionRequest("counter", "2.0.0", digest, SPEC, GAUSSIAN, None, Tolerance(), [], 1, placement=placement)


class ControlSide:
    """A control handler and its workers, and the end of the channel that a control process would have."""

    def __init__(self) -> None:
        self.plane = ResidencyPlane()
        self.plane.policy.residency = self.plane.residency
        self.poller = MessagePoller()
        self.end, end = channel.make_channel()
        self._serving_end = end
        self.workers = Workers(end, self.poller, print)
        self.handler = ControlHandler(
            end,
            1,
            self.poller,
            self.plane.sessions,
            self.plane.page,
            lambda reason: None,
            lambda tap: None,
            self.workers,
            lambda version, engine, rows: True,
        )
        self.workers.set_report(self.handler.send)
        self.workers.sink = self.plane.loop

    def tell(self, message: Any, *descriptors: int) -> list[Report]:
        """Lets the handler take a message, and returns what it reports."""
        channel.send(self.end, message, descriptors)
        self.handler.receive()
        return self.reports()

    def reports(self) -> list[Report]:
        """Returns what was reported since the last call."""
        reports: list[Report] = []
        self.end.setblocking(False)
        while True:
            try:
                data = self.end.recv(1 << 20)
            except BlockingIOError:
                return reports
            reports.append(channel._report_decoder.decode(data))

    def load(self, digest: bytes = OTHER) -> list[Report]:
        with sealed(b"a model") as model:
            return self.tell(Load(request(digest)), model)

    def load_on_two(self, **settings: Any) -> list[WorkerEngine]:
        """Begins to load a version on two devices; returns the engines of its workers."""
        self.plane.policy.engine = EngineSettings(device=["cpu", "cpu"], **settings)
        assert self.load() == [NeedWorker(OTHER, replica=0), NeedWorker(OTHER, replica=1)]
        return [replica.engine for replica in self.workers._versions[OTHER].replicas]

    def engine(self, digest: bytes = OTHER) -> WorkerEngine:
        return self.workers._versions[digest].replicas[0].engine

    def serve(self) -> WorkerEngine:
        """Loads a version, and goes on as if its first worker had been ready and was lost."""
        self.load()
        worker = self.workers._versions[OTHER]
        worker.version = self.plane.make_version(7)
        self.plane.residency.add(worker.version)
        return worker.replicas[0].engine

    def close(self) -> None:
        self.handler.close()
        self.poller.close()
        self.end.close()
        self._serving_end.close()


@pytest.fixture
def side() -> Iterator[ControlSide]:
    side = ControlSide()
    yield side
    side.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_an_unload_releases_a_version_that_is_still_loading(side: ControlSide) -> None:
    assert side.load() == [NeedWorker(OTHER)]
    before, engine = open_descriptors(), side.engine()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with sealed(b"a model") as model, theirs, ours:
        side.tell(WorkerStarted(OTHER), model, ours.fileno())
        assert engine.state is WorkerState.LOADING
    assert side.tell(Unload(OTHER)) == []
    assert (engine.state, open_descriptors()) == (WorkerState.OUT, before)
    assert side.load() == [NeedWorker(OTHER)]


def test_a_version_that_loads_is_not_loaded_once_more(side: ControlSide) -> None:
    side.load()
    engine = side.engine()
    assert side.load() == [LoadFailed(OTHER, "it is being loaded already")]
    assert side.engine() is engine
    assert list(side.workers._by_engine) == [engine]


def test_a_worker_whose_descriptors_find_no_room_is_lost(side: ControlSide) -> None:
    side.load()
    before = open_descriptors()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with sealed(b"a model") as model, theirs, ours:
        # One more than there is room for, so that the kernel drops it.
        reports = side.tell(WorkerStarted(OTHER), model, ours.fileno(), model)
    why = "no descriptor was left for its worker"
    assert reports == [NeedWorker(OTHER, why, cause=LossCause.SHORTAGE)]
    assert (side.engine().state, open_descriptors()) == (WorkerState.LOST, before)


@pytest.mark.parametrize("starts", [False, True], ids=["while the loop runs", "while the daemon starts"])
def test_for_a_worker_that_ended_before_it_was_attached_one_more_is_asked(side: ControlSide, starts: bool) -> None:
    side.load()
    if starts:
        side.workers.sink = None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    with sealed(b"a model") as model, ours:
        reports = side.tell(WorkerStarted(OTHER), model, ours.fileno())
    assert reports == [NeedWorker(OTHER, "its worker ended", cause=LossCause.ENDED)]


def test_a_version_that_is_out_may_be_given_up_once_more(side: ControlSide) -> None:
    engine = side.serve()
    side.tell(GiveUp(OTHER, "it keeps ending"))
    side.tell(GiveUp(OTHER, "cannot start a worker"))
    assert (engine.state, engine.reason) == (WorkerState.OUT, "cannot start a worker")
    out = side.workers._versions[OTHER].version
    assert out is not None
    assert "cannot start a worker" in str(out.out)


# Several workers for one version


def test_a_version_on_two_devices_is_loaded_once_both_are_ready(side: ControlSide) -> None:
    first, second = side.load_on_two()
    make_ready(second)
    assert side.reports() == []
    make_ready(first)
    (loaded,) = side.reports()
    assert isinstance(loaded, Loaded)
    assert len(loaded.engine["replicas"]) == 2
    version = side.plane.residency.find(OTHER)
    assert version is not None
    assert list(version.engine.replicas) == [first, second]
    assert version.resident_bytes > 2 * len(b"a model")
    assert version.model_bytes == 2 * len(b"a model")
    # A worker that replaces one of them is reported with its number.
    second.lose("a test says so", LossCause.ENDED)
    (need,) = side.reports()
    assert need == NeedWorker(OTHER, "a test says so", replica=1)
    make_ready(second)
    (ready,) = side.reports()
    assert isinstance(ready, WorkerReady)
    assert (ready.digest, ready.replica, len(ready.engine["replicas"])) == (OTHER, 1, 2)


def test_a_version_is_loaded_without_a_replica_that_is_given_up(side: ControlSide) -> None:
    first, second = side.load_on_two()
    make_ready(first)
    assert side.tell(GiveUp(OTHER, "no memory", 1))[0].__class__ is Loaded
    version = side.plane.residency.find(OTHER)
    assert version is not None
    assert (version.out, version.engine.free) == (None, first.free)
    # It is out once the other one is, too, and serves again when either does.
    first.lose("a test says so", LossCause.ENDED)
    side.tell(GiveUp(OTHER, "its worker ended", 0))
    assert "cpu: its worker ended" in str(version.out)
    second.revive()
    make_ready(second)
    assert (version.out, version.engine.is_ready) == (None, True)


def test_a_version_is_not_loaded_where_both_are_given_up(side: ControlSide) -> None:
    side.load_on_two()
    assert side.tell(GiveUp(OTHER, "no memory", 1)) == []
    assert side.tell(GiveUp(OTHER, "no memory", 0)) == [LoadFailed(OTHER, "cpu: no memory")]
    assert (side.workers._versions, side.workers._by_engine) == ({}, {})


def test_a_version_is_not_loaded_without_a_device_that_is_required(side: ControlSide) -> None:
    first, second = side.load_on_two(device_required=True)
    make_ready(first)
    assert side.tell(GiveUp(OTHER, "no such device", 1)) == [LoadFailed(OTHER, "cpu: no such device")]
    assert {first.state, second.state} == {WorkerState.OUT}


def test_only_the_replica_that_hangs_is_lost(side: ControlSide) -> None:
    first, second = side.load_on_two(hang_ms_min=10)
    for engine in (first, second):
        make_ready(engine)
    side.reports()
    now_ns = [10**9]
    side.workers._clock = lambda: now_ns[0]
    for engine in (first, second):
        engine._owes_since_ns = now_ns[0]
    for _ in range(100):
        now_ns[0] += 10**9
        # This one makes progress.
        second._owes_since_ns = now_ns[0]
        side.workers.judge()
    assert (first.state, second.state) == (WorkerState.LOST, WorkerState.READY)
    assert isinstance(need := side.reports()[0], NeedWorker)
    assert (need.cause, need.replica) == (LossCause.HUNG, 0)


class CountingSink:
    """A serving loop that only notes what was completed and what was lost."""

    def __init__(self) -> None:
        self.completed: list[BatchMemory] = []
        self.lost: list[BatchMemory] = []

    def complete(self, memory: BatchMemory, message: str | None, times: DeviceTimes) -> None:
        self.completed.append(memory)

    def lose(self, memories: Sequence[BatchMemory]) -> int:
        self.lost += memories
        return len(memories)

    def take_convicted(self, version: Version) -> list[int]:
        return []

    def refuse(self, version: Version, error: RemoteProtocolError) -> None:
        raise NotImplementedError


def test_the_pace_of_each_replica_is_learned_and_only_the_batches_of_a_lost_one_run_again(side: ControlSide) -> None:
    engines = side.load_on_two()
    for each in engines:
        make_ready(each)
    side.reports()
    side.workers.sink = sink = CountingSink()
    engine = side.workers._versions[OTHER].engine
    assert isinstance(engine, ReplicaEngine)
    submitted = []
    for _ in range(2):
        submitted.append(engine.choose(1))
        engine.submit(submitted[-1], 1)
    assert [memory in each.memories for memory, each in zip(submitted, engines, strict=True)] == [True, True]
    before_ns = engines[0].service.slow_ns(1)
    complete_oldest(engines[0], 50_000_000)
    assert sink.completed == submitted[:1]
    assert engines[0].service.slow_ns(1) > before_ns
    assert engines[1].service.slow_ns(1) == before_ns
    engine.release(submitted[0])
    assert engine.choose(1) is submitted[0]
    engines[1].lose("a test says so", LossCause.ENDED)
    assert sink.lost == submitted[1:]
    assert side.reports() == [NeedWorker(OTHER, "a test says so", reruns=1, replica=1)]
    assert [replica.batches for replica in side.workers._versions[OTHER].replicas] == [1, 0]


def test_a_recurrent_version_has_one_worker_and_says_so(side: ControlSide) -> None:
    side.plane.policy.engine = EngineSettings(device=["cpu", "cpu"])
    recurrent = msgspec.structs.replace(request(), states=[StateCard("sum", "sum_next", "float32", [1])])
    with sealed(b"a model") as model:
        assert side.tell(Load(recurrent), model) == [NeedWorker(OTHER)]
    described = side.workers._versions[OTHER].engine.describe()
    assert described["fallback"] == "cpu and cpu were asked for: a recurrent version runs on one device"
    side.tell(Unload(OTHER))
    side.plane.policy.engine = EngineSettings(device=["cpu", "cpu"], device_required=True)
    with sealed(b"a model") as model:
        (failed,) = side.tell(Load(recurrent), model)
    why = "engine.device_required: expected cpu and cpu, got cpu alone (a recurrent version runs on one device)"
    assert failed == LoadFailed(OTHER, why)
