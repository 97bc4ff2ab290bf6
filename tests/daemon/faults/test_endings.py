"""The daemon ends, in order or not, and acts are replaced: what was admitted is answered, and no process is left."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest

from pillion_protocol import Action, Error, Goodbye, Ping, Pong, encode
from tests.conftest import StartDaemon
from tests.daemon.support.policies.hostile import Poison, publish_hostile, publish_slow, row
from tests.daemon.support.policies.recurrent import publish_summing
from tests.daemon.support.raw_lane import RawEpisodeGroup, RawLane
from tests.daemon.support.worker_faults import another_worker, is_stopped, send, the_worker, worker_pids
from tests.harness import Daemon, wait_until

LANES = 6
ONE = np.ones(1, np.float32).tobytes()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("endings") / "store"
    publish_slow(root, 30_000)
    publish_hostile(root)
    publish_summing(root, "1.0.0", 0.0)
    return root


def processes(daemon: Daemon) -> list[psutil.Process]:
    """Everything that the daemon has started."""
    return psutil.Process(daemon.pid).children(recursive=True)


def wait_until_gone(children: list[psutil.Process]) -> None:
    """Waits until none of them runs; a zombie does not."""
    wait_until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))


def ping(lane: RawLane) -> None:
    """Waits until the daemon has done what was sent before."""
    conversation = lane.conversation
    assert isinstance(lane.ask(encode(Ping(conversation.session, conversation.epoch, lane.next()))), Pong)


def test_a_drain_answers_every_act_that_runs_or_waits_and_leaves_no_process(
    store: Path, short_path: Path, start_daemon: StartDaemon
) -> None:
    settings = {"limits__rows_max": 2, "engine__hang_ms_min": 60_000}
    daemon = start_daemon(policy="slow", store=store, listen=[f"lane://{short_path}/drain.sock"], settings=settings)
    children = processes(daemon)
    assert len(worker_pids(daemon)) == 1
    with ExitStack() as stack:
        lanes = [stack.enter_context(RawLane(daemon.address)).hello() for _ in range(LANES)]
        groups = [lane.begin(slots=False) for lane in lanes]
        for value, group in enumerate(groups):
            group.lane.send(group.act_head(), row(value).tobytes())
        ping(lanes[-1])
        daemon.process.send_signal(signal.SIGTERM)
        for value, lane in enumerate(lanes):
            reply, tensors = lane.receive(8)
            assert isinstance(reply, Action), reply
            assert np.frombuffer(tensors[0], np.int64) == value
            assert isinstance(lane.receive()[0], Goodbye)
        assert daemon.process.wait() == 0
    wait_until_gone(children)


def test_a_drain_does_not_wait_for_ever_for_an_engine_that_hangs_and_refuses_its_acts(
    store: Path, short_path: Path, start_daemon: StartDaemon
) -> None:
    settings = {"engine__hang_ms_min": 60_000}
    daemon = start_daemon(policy="hostile", store=store, listen=[f"lane://{short_path}/hangs.sock"], settings=settings)
    children = processes(daemon)
    with RawLane(daemon.address) as lane:
        group = lane.hello().begin(slots=False)
        group.lane.send(group.act_head(), row(1, Poison.FOR_EVER).tobytes())
        ping(lane)
        daemon.process.send_signal(signal.SIGTERM)
        refused = lane.receive()[0]
        assert isinstance(refused, Error), refused
        assert refused.code == "draining"
        assert isinstance(lane.receive()[0], Goodbye)
        assert daemon.process.wait() == 0
    wait_until_gone(children)


@pytest.mark.parametrize("victim", ["control", "serving"])
def test_no_process_outlives_the_one_that_it_works_for(
    store: Path, short_path: Path, start_daemon: StartDaemon, victim: str
) -> None:
    """Also where a worker is in the middle of a batch that does not end."""
    daemon = start_daemon(policy="hostile", store=store, listen=[f"lane://{short_path}/{victim}.sock"])
    children = processes(daemon)
    workers = worker_pids(daemon)
    with RawLane(daemon.address) as lane:
        group = lane.hello().begin(slots=False)
        lane.send(group.act_head(), row(1, Poison.FOR_EVER).tobytes())
        ping(lane)
        if victim == "control":
            daemon.kill()
            wait_until_gone(children)
            return
        daemon.kill_serving()
        daemon.wait_ready(2)
    wait_until_gone([child for child in children if child.pid in workers])
    assert the_worker(daemon) not in workers


# Acts that a newer one replaces while they run


@pytest.fixture(params=[1, 2], ids=["depth 1", "depth 2"])
def summing(
    request: pytest.FixtureRequest, store: Path, short_path: Path, start_daemon: StartDaemon
) -> Iterator[tuple[Daemon, RawEpisodeGroup]]:
    """An episode whose action is the sum of its observations, in a worker."""
    settings = {"engine__placement": "worker", "engine__depth": request.param, "engine__hang_ms_min": 60_000}
    listen = [f"lane://{short_path}/superseded-{request.param}.sock"]
    daemon = start_daemon(policy="summing", store=store, listen=listen, settings=settings)
    with RawLane(daemon.address) as lane:
        yield daemon, lane.hello().begin(slots=False)


def add(group: RawEpisodeGroup) -> float:
    """Acts, and returns the sum so far."""
    group.lane.send(group.act_head(), ONE)
    return answer(group)


def answer(group: RawEpisodeGroup) -> float:
    reply, tensors = group.lane.receive(4)
    assert isinstance(reply, Action), reply
    return float(np.frombuffer(tensors[0], np.float32)[0])


@pytest.mark.parametrize("end", [signal.SIGCONT, signal.SIGKILL])
def test_an_act_that_is_replaced_while_it_runs_does_not_advance_the_state(
    summing: tuple[Daemon, RawEpisodeGroup], end: signal.Signals
) -> None:
    daemon, group = summing
    assert add(group) == 1
    pid = the_worker(daemon)
    send(pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(pid))
    replaced = []
    for _ in range(3):
        replaced.append(group.act_head())
        group.lane.send(replaced[-1], ONE)
        ping_or_superseded(group, expected=len(replaced) - 1)
    send(pid, end)
    assert answer(group) == 2
    assert add(group) == 3
    if end is signal.SIGKILL:
        another_worker(daemon, pid)


def ping_or_superseded(group: RawEpisodeGroup, expected: int) -> None:
    """Waits until the act is admitted; all but the first replace one, which is answered before."""
    lane = group.lane
    conversation = lane.conversation
    lane.send(encode(Ping(conversation.session, conversation.epoch, lane.next())))
    replies = [lane.receive()[0] for _ in range(1 + bool(expected))]
    assert isinstance(replies[-1], Pong)
    assert [reply.code for reply in replies[:-1] if isinstance(reply, Error)] == ["superseded"] * bool(expected)
