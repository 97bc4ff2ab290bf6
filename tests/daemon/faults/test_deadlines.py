"""Budgets beside a slow policy in a worker: what is too late is not run, and every act has exactly one end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import pillion
from pillion.conversation import Conversation
from pillion.errors import EngineRestartingError, RefusedError
from pillion_protocol import Act, Action, Error, Ping, Pong, encode
from tests.conftest import StartDaemon
from tests.daemon.support.policies.hostile import publish_slow, row
from tests.daemon.support.raw_lane import RawEpisodeGroup, RawLane
from tests.daemon.support.worker_faults import (
    OK,
    BackgroundActor,
    another_worker,
    is_stopped,
    send,
    the_worker,
    worker_pids,
)
from tests.harness import Daemon, wait_until

TURNS = 12_000
"""Some 15 ms for a batch on an idle core."""
SHORT_US = 5_000
"""No act of the slow policy can be done within it."""
LONG_US = 50_000
"""Some can."""
ACTS = 60
LATE = "deadline_exceeded"


@pytest.fixture(scope="module")
def slow_daemon(tmp_path_factory: pytest.TempPathFactory, short_path: Path, module_daemon: StartDaemon) -> Daemon:
    """A daemon whose policy takes longer than the short budgets."""
    store = tmp_path_factory.mktemp("slow") / "store"
    publish_slow(store, TURNS)
    listen = [f"lane://{short_path}/slow.sock", f"ipc://{short_path}/slow.zmq"]
    settings = {"engine__hang_ms_min": 5_000, "limits__rows_max": 16}
    return module_daemon(policy="slow", store=store, listen=listen, settings=settings)


@pytest.fixture
def busy(slow_daemon: Daemon) -> Iterator[None]:
    """Two clients keep the worker busy."""
    with ExitStack() as stack:
        others = [
            stack.enter_context(BackgroundActor(each, seed=2 + n)) for n, each in enumerate(slow_daemon.addresses)
        ]
        for other in others:
            other.wait_for(1)
        yield
        for other in others:
            assert set(other.stop()) == {OK}


def deadline_ns(last: pillion.Outcome) -> int:
    """Where the budget of a late act ended, in ns after the daemon had read it, less than 1 µs too early."""
    return last.timings.ran_ns - last.late_us * 1_000


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("carrier", [0, 1], ids=["lane", "zmq"])
@pytest.mark.parametrize("budget_us", [SHORT_US, LONG_US])
def test_no_act_is_dispatched_after_its_budget(slow_daemon: Daemon, carrier: int, budget_us: int) -> None:
    refused = slow_daemon.metric("pillion_requests_total", outcome=LATE)
    with BackgroundActor(slow_daemon.addresses[carrier], budget_us=budget_us) as actor:
        wait_until(lambda: actor.acts >= ACTS)
        actor.stop()
    assert set(actor.outcomes) <= {OK, LATE}
    assert actor.outcomes[LATE] or budget_us != SHORT_US
    assert slow_daemon.metric("pillion_requests_total", outcome=LATE) == refused + actor.outcomes[LATE]
    assert all(last.timings.dispatched_ns <= deadline_ns(last) + 1_000 for last in actor.late)


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("fallback", ["zeros", "last"])
def test_a_declared_fallback_is_what_a_late_act_gets(slow_daemon: Daemon, fallback: str) -> None:
    with pillion.connect(slow_daemon.address, fallback=fallback) as session, session.begin(seed=1) as episode:
        last = episode.act(row(41))
        replaced = 0
        for value in range(ACTS):
            action = episode.act(row(value), budget_us=SHORT_US)
            if not episode.last.fallback:
                last = action
            assert action == {"": value, "zeros": 0, "last": last}[episode.last.fallback]
            assert episode.last.fallback in ("", fallback)
            replaced += bool(episode.last.fallback)
        assert replaced


class Lane:
    """A lane that sends acts with budgets and does not wait for their answers."""

    def __init__(self, lane: RawLane) -> None:
        # Nothing waits for its next act: an act runs as soon as it is read, if the worker is free.
        lane.conversation = Conversation("raw", lock_step=False)
        self.lane = lane.hello()
        self.group: RawEpisodeGroup = lane.begin(slots=False)

    def send(self, value: int, budget_us: int = 0) -> None:
        lane = self.lane
        head = encode(
            Act(lane.conversation.session, lane.conversation.epoch, lane.next(), self.group.episode, 1, budget_us, True)
        )
        lane.send(head, row(value).tobytes())

    def send_to_run(self, value: int, budget_us: int = 0) -> None:
        """Sends an act, and waits until its batch runs: the daemon answers a ping after it."""
        self.send(value, budget_us)
        conversation = self.lane.conversation
        assert isinstance(self.lane.ask(encode(Ping(conversation.session, conversation.epoch, self.lane.next()))), Pong)

    def receive(self) -> tuple[int | str, Action | Error]:
        """Returns the value of the answer, or the code of the refusal, and the message."""
        reply, tensors = self.lane.receive(8)
        if isinstance(reply, Error):
            return reply.code, reply
        assert isinstance(reply, Action), reply
        return int(np.frombuffer(tensors[0], np.int64)[0]), reply


@pytest.fixture
def lanes(slow_daemon: Daemon) -> Iterator[list[Lane]]:
    with ExitStack() as stack:
        yield [Lane(stack.enter_context(RawLane(slow_daemon.address))) for _ in range(3)]


def stop_the_worker(daemon: Daemon) -> int:
    pid = the_worker(daemon)
    send(pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(pid))
    return pid


def test_a_budget_ends_while_the_engine_is_busy_and_an_act_that_runs_is_answered_late(
    slow_daemon: Daemon, lanes: list[Lane]
) -> None:
    running, waiting, patient = lanes
    pid = stop_the_worker(slow_daemon)
    running.send_to_run(1, budget_us=200_000)
    waiting.send(2, budget_us=200_000)
    patient.send(3)
    assert waiting.receive()[0] == LATE
    send(pid, signal.SIGCONT)
    value, action = running.receive()
    assert value == 1
    assert isinstance(action, Action)
    assert action.late_us > 0
    value, action = patient.receive()
    assert value == 3
    assert isinstance(action, Action)
    assert action.late_us == 0


def test_a_budget_that_ends_while_the_worker_is_replaced_gets_an_error_that_says_to_act_again(
    slow_daemon: Daemon, lanes: list[Lane]
) -> None:
    running, waiting, patient = lanes
    pid = stop_the_worker(slow_daemon)
    running.send_to_run(1, budget_us=LONG_US)
    patient.send(3)
    send(pid, signal.SIGKILL)
    # Its end of the channel is closed then: on a slow machine the budget would end before the daemon could know.
    wait_until(lambda: pid not in worker_pids(slow_daemon))
    waiting.send(2, budget_us=LONG_US)
    assert waiting.receive()[0] == "engine_restarting"
    assert running.receive()[0] == "engine_restarting"
    assert patient.receive()[0] == 3
    another_worker(slow_daemon, pid)
    for number, lane in enumerate(lanes):
        lane.send(number)
        assert lane.receive()[0] == number


def test_the_client_raises_it_as_its_own_error(slow_daemon: Daemon) -> None:
    with pillion.connect(slow_daemon.address) as session, session.begin(seed=1) as episode:
        pid = the_worker(slow_daemon)
        send(pid, signal.SIGKILL)
        with pytest.raises(RefusedError) as refused:
            episode.act(row(1), budget_us=LONG_US)
        assert type(refused.value) is EngineRestartingError
        assert episode.act(row(2)) == 2
