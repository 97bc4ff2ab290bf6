"""The loop with an engine that answers later: acts that are replaced meanwhile, and versions that are mixed with others."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any, ClassVar

import numpy as np
import pytest

from pillion_protocol import Error, ErrorCode, RemoteProtocolError
from pillion_protocol.action_steps import NO_DEVICE_TIMES, DeviceTimes
from pilliond.engine.batch_memory import BatchMemory
from pilliond.limits import POLL_NS_MAX, POLLED_RUN_NS_MAX, TICK_MS, TRAFFIC_LINGER_MS, UNPOLLED_BATCHES
from pilliond.linux.epoll import Events, Poller
from pilliond.serving.loop import ServingLoop
from pilliond.versions.loaded_version import Identity, Version
from pilliond.versions.mixed_version import MixedVersion
from tests.daemon.support.fakes import (
    GAUSSIAN,
    SPEC,
    CountingEngine,
    DataPlane,
    act,
    codes,
    observation,
)
from tests.harness import WAIT_S_MAX

DIGEST = bytes(32)


class LateEngine(CountingEngine):
    """A counting engine outside the loop, with `depth` memories: a test says when a batch is done."""

    is_inline = False

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.memories = [self._memory() for _ in range(depth)]
        self.free = list(self.memories)
        self.submitted: list[tuple[BatchMemory, int]] = []

    def _memory(self) -> BatchMemory:
        engine = CountingEngine()
        return BatchMemory(SPEC, engine.inputs, engine.outputs, engine.states)

    def choose(self, rows: int) -> BatchMemory:
        return self.free[-1]

    def submit(self, memory: BatchMemory, rows: int) -> None:
        self.free.remove(memory)
        self.submitted.append((memory, rows))

    def collect(self, memory: BatchMemory) -> None:
        """The results are there."""

    def release(self, memory: BatchMemory) -> None:
        self.free.append(memory)

    def compute(self) -> BatchMemory:
        """Runs the oldest batch; the loop does not know yet."""
        memory, rows = self.submitted.pop(0)
        memory.outputs["action"][:rows] = memory.inputs[0][:rows].sum(axis=1)
        return memory


class LatePlane(DataPlane):
    """A data plane whose version runs on a late engine."""

    def __init__(self, depth: int = 2) -> None:
        self.late = LateEngine(depth)
        super().__init__()

    def first_version(self, safe_action: list[float] | None) -> Version:
        return Version(Identity("counter", "1.2.3", DIGEST), SPEC, GAUSSIAN, self.late, safe_action)

    def finish(self, times: DeviceTimes = NO_DEVICE_TIMES) -> list[Any]:
        """Completes the oldest batch, and returns what was sent: the message and its first tensor."""
        self.loop.complete(self.late.compute(), None, times)
        self.run()
        sent = [list(message) for message in self.transport.sent]
        self.transport.sent.clear()
        return sent


@pytest.fixture
def plane() -> LatePlane:
    return LatePlane()


def test_an_act_that_is_replaced_by_one_that_cannot_be_done_in_time_is_not_run(plane: LatePlane) -> None:
    begun = plane.begin(plane.open())
    plane.version.service.observe(1, 10_000_000)
    for memory in list(plane.late.free):
        plane.late.free.remove(memory)
    plane.deliver(b"peer", act(begun, 2), observation())
    assert plane.replies() == []
    plane.deliver(b"peer", act(begun, 3, budget_us=100), observation())
    assert codes(plane.replies()) == ["superseded", "deadline_exceeded"]
    assert plane.scheduler.rows_waiting == 0
    plane.late.free.extend(plane.late.memories)
    assert codes(plane.replies()) == []
    assert not plane.late.submitted


def test_an_act_that_was_replaced_and_is_sent_again_gets_the_answer_of_its_own_run(plane: LatePlane) -> None:
    begun = plane.begin(plane.open())
    plane.version.service.observe(1, 10_000_000)
    plane.deliver(b"peer", act(begun, 5), observation(value=1))
    assert plane.replies() == []
    plane.deliver(b"peer", act(begun, 6, budget_us=100), observation(value=2))
    assert codes(plane.replies()) == ["superseded", "deadline_exceeded"]
    plane.deliver(b"peer", act(begun, 5), observation(value=3))
    assert plane.replies() == []
    assert plane.finish() == []
    (message,) = plane.finish()
    assert np.frombuffer(message[2], np.float32).tolist() == [9.0]
    assert len(plane.late.free) == 2


def test_acts_of_a_group_with_a_version_that_is_out_are_refused() -> None:
    whole, broken = CountingEngine(), LateEngine()
    versions = [
        Version(Identity("counter", number, DIGEST), SPEC, GAUSSIAN, engine)
        for number, engine in (("1.0.0", whole), ("2.0.0", broken))
    ]
    mixed = MixedVersion(versions)
    assert mixed.out is None
    versions[1].out = RemoteProtocolError(ErrorCode.ENGINE_OUT, "it keeps failing")
    assert mixed.out is versions[1].out


def test_a_mixed_version_can_be_made_while_one_of_its_workers_is_replaced() -> None:
    whole, loading = CountingEngine(), LateEngine()
    versions = [
        Version(Identity("counter", number, DIGEST), SPEC, GAUSSIAN, engine)
        for number, engine in (("1.0.0", whole), ("2.0.0", loading))
    ]
    loading.memories, loading.free = [], []
    assert not MixedVersion(versions).engine.free


class PassingTime:
    """Stands in for `plane.poller.poll`: a poll takes a microsecond, and a wait is noted."""

    def __init__(self, plane: LatePlane) -> None:
        self._plane = plane
        self._poll = plane.poller.poll
        self.polls = self.waits = 0

    def __call__(self, timeout: float | None = None, maxevents: int = -1) -> Events:
        if timeout is None:
            self.waits += 1
        else:
            self.polls += 1
            self._plane.clock.now_ns += 1_000
        return self._poll(0, maxevents)


def acts_of_a_quick_version(plane: LatePlane, poll: PassingTime, numbers: range) -> list[int]:
    """Sends acts one by one, which are answered too late to be polled for; returns how often each was polled for."""
    begun = plane.begin(plane.open())
    found = []
    for number in numbers:
        plane.version.service.seed(1, POLLED_RUN_NS_MAX // 2, POLLED_RUN_NS_MAX)
        plane.deliver(b"peer", act(begun, number), observation())
        plane.loop.run_once(plane.loop._wait())
        poll.polls = 0
        plane.loop._wait()
        found.append(poll.polls)
        plane.finish()
    return found


def test_a_quick_batch_is_polled_for_and_after_one_in_vain_not_for_a_while(plane: LatePlane) -> None:
    poll = plane.loop._poll = PassingTime(plane)
    found = acts_of_a_quick_version(plane, poll, range(2, UNPOLLED_BATCHES + 4))
    assert found[0] * 1_000 == pytest.approx(POLL_NS_MAX, abs=2_000)
    assert found[1:-1] == [0] * UNPOLLED_BATCHES
    assert found[-1] == found[0]
    assert poll.waits >= len(found)


def test_a_batch_that_is_not_quick_or_not_known_is_waited_for_asleep(plane: LatePlane) -> None:
    poll = plane.loop._poll = PassingTime(plane)
    begun = plane.begin(plane.open())
    for number, fast_ns in ((2, 0), (3, POLLED_RUN_NS_MAX)):
        plane.version.service.seed(1, fast_ns, fast_ns)
        plane.deliver(b"peer", act(begun, number), observation())
        plane.loop.run_once(plane.loop._wait())
        poll.polls = 0
        plane.loop._wait()
        assert poll.polls == 0
        plane.finish()


class Restless:
    """A source that is always ready."""

    bursts: ClassVar[bool] = False

    def __init__(self) -> None:
        self.reads = 0

    def receive(self) -> None:
        self.reads += 1


def test_the_host_gets_its_turn_while_sources_are_always_ready() -> None:
    """Ticks come although nothing is ever silent: the watchdog looks for them."""
    plane = DataPlane()
    poller: Poller[Any] = Poller()
    source = Restless()
    descriptor = os.eventfd(1, os.EFD_NONBLOCK)
    poller.add(descriptor, source)
    loop = ServingLoop(
        poller, [], plane.sessions, plane.scheduler, plane.page, time.monotonic_ns, lambda name, fields: None
    )
    ticks: list[int] = []

    def tick() -> None:
        ticks.append(source.reads)
        if len(ticks) == 4:
            loop.stop("enough")

    loop.on_tick = tick
    assert asyncio.run(asyncio.wait_for(loop.run(), WAIT_S_MAX)) == "enough"
    os.close(descriptor)
    assert ticks == sorted(ticks)
    assert ticks[-1] > ticks[0]
    assert TRAFFIC_LINGER_MS < TICK_MS


def test_a_reply_to_a_late_batch_is_the_action_of_its_rows(plane: LatePlane) -> None:
    begun = plane.begin(plane.open())
    plane.deliver(b"peer", act(begun, 2), observation(value=2))
    assert plane.replies() == []
    (message,) = plane.finish()
    assert not isinstance(message, Error)
    assert np.frombuffer(message[2], np.float32).tolist() == [6.0]
