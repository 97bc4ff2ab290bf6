"""The versions that run in workers, as the control process asks for them; a test is in place of the control process."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from pillion_artifacts.card.model_card import Tolerance
from pilliond.engine.worker import WorkerEngine, WorkerState
from pilliond.ipc import control_channel as channel
from pilliond.ipc.control_channel import (
    GiveUp,
    Load,
    LoadFailed,
    NeedWorker,
    Report,
    Unload,
    VersionRequest,
    WorkerStarted,
)
from pilliond.ipc.placement import Placement
from pilliond.serving.control_handler import ControlHandler
from pilliond.serving.workers import Workers
from pilliond.transport.interface import MessagePoller
from tests.daemon.support.fakes import DIGEST, GAUSSIAN, SPEC
from tests.daemon.support.residency_plane import ResidencyPlane
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


@pytest.mark.parametrize("count", [0, 1])
def test_a_worker_whose_descriptors_found_no_room_is_lost(side: ControlSide, count: int) -> None:
    side.load()
    before = open_descriptors()
    with sealed(b"a model") as model:
        reports = side.tell(WorkerStarted(OTHER), *[model][:count])
    assert reports == [NeedWorker(OTHER, "no descriptor was left for its worker")]
    assert (side.engine().state, open_descriptors()) == (WorkerState.LOST, before)


def test_a_version_that_is_out_may_be_given_up_once_more(side: ControlSide) -> None:
    engine = side.serve()
    side.tell(GiveUp(OTHER, "it keeps ending"))
    side.tell(GiveUp(OTHER, "cannot start a worker"))
    assert (engine.state, engine.reason) == (WorkerState.OUT, "cannot start a worker")
    out = side.workers._versions[OTHER].version
    assert out is not None
    assert "cannot start a worker" in str(out.out)
