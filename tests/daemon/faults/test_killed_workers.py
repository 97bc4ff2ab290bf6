"""A worker is killed or stopped in each phase: its acts run again, no state is lost or advanced twice, others go on."""

from __future__ import annotations

import random
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pillion
from pillion_protocol import Action, Ping, Pong, encode
from tests.conftest import StartDaemon
from tests.daemon.support.policies.hostile import LSTM_INPUTS, publish_harmless, publish_hostile, publish_lstm, row
from tests.daemon.support.policies.recurrent import publish_looped_summing, publish_summing
from tests.daemon.support.raw_lane import RawEpisodeGroup, RawLane
from tests.daemon.support.worker_faults import (
    OK,
    BackgroundActor,
    another_worker,
    is_stopped,
    send,
    the_worker,
    worker_pids,
    workers_at_a_glance,
)
from tests.harness import START_S_MAX, STORE, Daemon, wait_until

ENDS = [signal.SIGKILL, signal.SIGSTOP]
"""A worker that is stopped hangs: it is judged by its batch, and replaced."""
WORKER = {"engine__placement": "worker", "engine__hang_ms_min": 150}
STEPS = 12
IN_A_ROW = 3
"""Workers that are killed without an answer between them. On a busy machine they start slowly, and five would take the version
out."""


def observations(seed: int = 5) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(STEPS, LSTM_INPUTS)).astype(np.float32)


def hit(daemon: Daemon, number: signal.Signals) -> int:
    """Kills or stops the only worker; returns its pid."""
    pid = the_worker(daemon)
    send(pid, number)
    if number is signal.SIGSTOP:
        wait_until(lambda: is_stopped(pid))
    return pid


@pytest.fixture(scope="module", params=[1, 2], ids=["depth 1", "depth 2"])
def lstm_daemon(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    short_path: Path,
    module_daemon: StartDaemon,
) -> Daemon:
    store = tmp_path_factory.mktemp("lstm") / "store"
    publish_lstm(store)
    settings = {**WORKER, "engine__depth": request.param}
    return module_daemon(
        policy="lstm", store=store, listen=[f"lane://{short_path}/lstm-{request.param}.sock"], settings=settings
    )


def undisturbed(daemon: Daemon) -> list[list[float]]:
    """The actions of an episode in which nothing happens."""
    with pillion.connect(daemon.address) as session, session.begin(seed=1) as episode:
        return [episode.act(observation).tolist() for observation in observations()]


@pytest.mark.parametrize("end", ENDS)
def test_a_worker_lost_between_acts_loses_no_state(lstm_daemon: Daemon, end: signal.Signals) -> None:
    expected = undisturbed(lstm_daemon)
    with pillion.connect(lstm_daemon.address) as session, session.begin(seed=1) as episode:
        for step, observation in enumerate(observations()):
            if step in (0, 4, 5, STEPS - 1):
                lost = hit(lstm_daemon, end)
                assert episode.act(observation).tolist() == expected[step]
                another_worker(lstm_daemon, lost)
            else:
                assert episode.act(observation).tolist() == expected[step]


def in_flight(lane: RawLane, group: RawEpisodeGroup, observation: bytes) -> None:
    """Sends an act and waits until the daemon has given it to the worker, which is stopped."""
    lane.send(group.act_head(), observation)
    conversation = lane.conversation
    assert isinstance(lane.ask(encode(Ping(conversation.session, conversation.epoch, lane.next()))), Pong)


@pytest.mark.parametrize("continued", [False, True], ids=["killed", "continued"])
def test_a_worker_lost_with_a_batch_advances_the_state_once(lstm_daemon: Daemon, continued: bool) -> None:
    """Also where it may have finished the batch: nobody has read the answer."""
    expected = undisturbed(lstm_daemon)
    with RawLane(lstm_daemon.address) as lane:
        group = lane.hello().begin(slots=False)
        for step, observation in enumerate(observations()):
            lost = hit(lstm_daemon, signal.SIGSTOP) if step % 3 == 1 else 0
            if not lost:
                lane.send(group.act_head(), observation.tobytes())
            else:
                in_flight(lane, group, observation.tobytes())
                if continued:
                    send(lost, signal.SIGCONT)
                send(lost, signal.SIGKILL)
            reply, tensors = lane.receive(16)
            assert isinstance(reply, Action), reply
            assert np.frombuffer(tensors[0], np.float32).tolist() == expected[step]
            if lost:
                another_worker(lstm_daemon, lost)


def test_workers_killed_at_any_moment_change_no_answer(lstm_daemon: Daemon) -> None:
    expected = undisturbed(lstm_daemon)
    starts = lstm_daemon.metric("pillion_serving_starts_total")
    is_done = threading.Event()
    draw = random.Random(7)
    answers: list[list[float]] = []

    def hunt() -> None:
        answers_at_hits = deque([-1] * IN_A_ROW, maxlen=IN_A_ROW)
        while not is_done.wait(draw.random() * 0.1):
            if answers_at_hits[0] == len(answers):
                continue
            for pid in worker_pids(lstm_daemon):
                answers_at_hits.append(len(answers))
                send(pid, draw.choice(ENDS))

    hunter = threading.Thread(target=hunt, name="hunter")
    with ExitStack() as stack:
        sessions = [stack.enter_context(pillion.connect(lstm_daemon.address, timeout_s=START_S_MAX)) for _ in range(2)]
        hunter.start()
        try:
            for session in sessions * 2:
                with session.begin(seed=1) as episode:
                    for step, observation in enumerate(observations()):
                        answers.append(act_through(partial(episode.act, observation)))
                        assert answers[-1] == expected[step]
        finally:
            is_done.set()
            hunter.join()
    assert lstm_daemon.metric("pillion_serving_starts_total") == starts
    assert undisturbed(lstm_daemon) == expected


def act_through(act: Callable[[], Any]) -> Any:
    """Repeats an act that two workers in a row died of, as far as the daemon can tell."""
    while True:
        try:
            return act().tolist()
        except pillion.errors.RefusedError as refused:
            if "killed twice" not in refused.message:
                raise


def test_sampled_actions_are_the_same_after_a_loss(short_path: Path, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(
        policy="lunar-lander", store=STORE, listen=[f"lane://{short_path}/draws.sock"], settings=WORKER
    )
    draws = np.random.default_rng(3).normal(size=(STEPS, 8)).astype(np.float32)

    def episode(*, ends: dict[int, signal.Signals]) -> list[int]:
        actions = []
        with pillion.connect(daemon.address) as session, session.begin(seed=11) as episode:
            for step, observation in enumerate(draws):
                lost = hit(daemon, ends[step]) if step in ends else 0
                actions.append(int(episode.act(observation, deterministic=False)))
                if lost:
                    another_worker(daemon, lost)
        return actions

    expected = episode(ends={})
    assert len(set(expected)) > 1
    assert episode(ends={1: signal.SIGKILL, 5: signal.SIGSTOP, 6: signal.SIGKILL}) == expected


# Other policies, and versions that load, switch and shadow


@pytest.fixture
def two_policies(tmp_path: Path, short_path: Path, start_daemon: StartDaemon) -> Daemon:
    """A daemon that serves `hostile` in a worker, and `harmless` inline."""
    store = tmp_path / "store"
    publish_hostile(store)
    publish_harmless(store)
    return start_daemon(
        "--policy",
        "harmless",
        policy="hostile",
        store=store,
        listen=[f"lane://{short_path}/two.sock"],
        settings={"engine__hang_ms_min": 150},
    )


def test_an_act_runs_again_with_its_own_observation(two_policies: Daemon) -> None:
    """Meanwhile the daemon reads others, which come to lie where the act was read."""
    with RawLane(two_policies.address) as lane, pillion.connect(two_policies.address, policy="harmless") as other:
        group = lane.hello().begin(slots=False)
        episode = other.begin(seed=1)
        for value in (7, 8):
            lost = hit(two_policies, signal.SIGSTOP)
            in_flight(lane, group, row(value).tobytes())
            assert episode.act(row(100)) == 100
            send(lost, signal.SIGKILL)
            reply, tensors = lane.receive(8)
            assert isinstance(reply, Action), reply
            assert np.frombuffer(tensors[0], np.int64) == value
            another_worker(two_policies, lost)


def test_other_policies_lose_no_act(two_policies: Daemon) -> None:
    daemon = two_policies
    with BackgroundActor(daemon.address, "harmless") as beside, BackgroundActor(daemon.address, "hostile") as victim:
        for end in [*ENDS, *ENDS]:
            victim.wait_for(1)
            beside.wait_for(1)
            lost = hit(daemon, end)
            another_worker(daemon, lost)
        victim.wait_for(1)
        assert set(beside.stop()) == {OK}
        assert set(victim.stop()) == {OK}
    assert daemon.metric("pillion_requests_total", policy="harmless", outcome="ok") == beside.acts


@contextmanager
def each_new_worker_is_hit(daemon: Daemon, end: signal.Signals, times: int) -> Iterator[list[int]]:
    """Kills or stops the next `times` workers that start, as soon as they do; yields their pids."""
    known = set(worker_pids(daemon))
    hits: list[int] = []
    is_done = threading.Event()

    def hunt() -> None:
        while len(hits) < times and not is_done.wait(0.002):
            for pid in workers_at_a_glance(daemon) - known:
                known.add(pid)
                send(pid, end)
                hits.append(pid)

    hunter = threading.Thread(target=hunt, name="hunter")
    hunter.start()
    try:
        yield hits
    finally:
        is_done.set()
        hunter.join()


@pytest.fixture
def summing(tmp_path: Path, short_path: Path, start_daemon: StartDaemon) -> Daemon:
    """A daemon that serves 1.0.0 of `summing` in a worker; 1.1.0 adds ten for each act, 1.0.0 adds one."""
    publish_summing(tmp_path / "store", "1.0.0", 1.0)
    publish_summing(tmp_path / "store", "1.1.0", 10.0)
    listen = [f"lane://{short_path}/summing.sock"]
    return start_daemon(policy="summing@1.0.0", store=tmp_path / "store", listen=listen, settings=WORKER)


def ask(daemon: Daemon, verb: str, **body: Any) -> dict[str, Any]:
    return daemon.operation(daemon.ask("POST", f"/v1/policies/summing/{verb}", body))


class Counting:
    """An episode of `summing`, and what its sum must be."""

    def __init__(self, session: pillion.Session, rows: int = 1) -> None:
        self.group = session.begin_many(rows)
        self.sums = np.zeros(rows)

    def act(self, steps: list[float], starts: list[bool] | None = None) -> None:
        """Acts on zeros; the sum of each row must have grown by its step."""
        if starts is not None:
            self.sums[np.array(starts)] = 0
        self.sums += steps
        rows = len(self.sums)
        action = self.group.act(np.zeros((rows, 1), np.float32), episode_start=starts)
        np.testing.assert_array_equal(action.reshape(-1), self.sums)


def test_a_worker_killed_while_it_loads_for_a_switch_is_replaced_and_the_switch_is_done(summing: Daemon) -> None:
    live = the_worker(summing)
    with pillion.connect(summing.address) as session:
        old = Counting(session)
        old.act([1])
        with each_new_worker_is_hit(summing, signal.SIGKILL, 2) as hits:
            status = ask(summing, "switch", version="1.1.0")
        assert (status["outcome"], len(hits)) == ("done", 2), status
        old.act([1])
        new = Counting(session)
        new.act([10])
        new.act([10])
    assert live in worker_pids(summing)
    assert len(worker_pids(summing)) == 2


def test_a_worker_that_is_killed_each_time_while_it_loads_fails_the_switch_alone(summing: Daemon) -> None:
    live = the_worker(summing)
    with pillion.connect(summing.address) as session:
        old = Counting(session)
        with each_new_worker_is_hit(summing, signal.SIGKILL, 1_000) as hits:
            status = ask(summing, "switch", version="1.1.0")
        assert (status["outcome"], len(hits)) == ("failed", 5), status
        assert "its worker was killed by SIGKILL" in status["error"]
        old.act([1])
        assert worker_pids(summing) == [live]
        assert ask(summing, "switch", version="1.1.0")["outcome"] == "done"
        Counting(session).act([10])
        old.act([1])


def test_a_worker_killed_while_the_daemon_starts_is_replaced(
    tmp_path: Path, short_path: Path, start_daemon: StartDaemon
) -> None:
    publish_summing(tmp_path / "store", "1.0.0", 1.0)
    listen = [f"lane://{short_path}/start.sock"]
    daemon = start_daemon(policy="summing", store=tmp_path / "store", listen=listen, settings=WORKER)
    with each_new_worker_is_hit(daemon, signal.SIGKILL, 1) as hits:
        daemon.kill_serving()
        daemon.wait_ready(2)
    assert len(hits) == 1
    with pillion.connect(daemon.address) as session:
        Counting(session).act([1])


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("victim", [0, 1], ids=["old", "new"])
def test_a_mixed_group_keeps_the_state_of_each_row(summing: Daemon, end: signal.Signals, victim: int) -> None:
    with pillion.connect(summing.address) as session:
        mixed = Counting(session, rows=3)
        mixed.act([1, 1, 1])
        ask(summing, "switch", version="1.1.0")
        mixed.act([1, 10, 1], starts=[False, True, False])
        pids = worker_pids(summing)
        send(pids[victim], end)
        mixed.act([1, 10, 1])
        wait_until(lambda: len(worker_pids(summing)) == 2 and worker_pids(summing) != pids)
        mixed.act([1, 10, 1])
        ask(summing, "rollback")
        send(worker_pids(summing)[0], end)
        mixed.act([1, 10, 1])
        mixed.act([1, 10, 1], starts=[False, False, True])


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("inline", ["old", "new"])
def test_a_mixed_group_with_an_inline_version_keeps_the_state_of_each_row(
    tmp_path: Path, short_path: Path, start_daemon: StartDaemon, end: signal.Signals, inline: str
) -> None:
    store = tmp_path / "store"
    old, new = (
        (publish_summing, publish_looped_summing) if inline == "old" else (publish_looped_summing, publish_summing)
    )
    old(store, "1.0.0", 1.0)
    new(store, "1.1.0", 10.0)
    daemon = start_daemon(
        policy="summing@1.0.0",
        store=store,
        listen=[f"lane://{short_path}/inline-{inline}.sock"],
        settings={"engine__inline_us_max": 1e6, "engine__hang_ms_min": 150},
    )
    with pillion.connect(daemon.address) as session:
        mixed = Counting(session, rows=3)
        mixed.act([1, 1, 1])
        ask(daemon, "switch", version="1.1.0")
        mixed.act([1, 10, 1], starts=[False, True, False])
        for _ in range(2):
            lost = hit(daemon, end)
            mixed.act([1, 10, 1])
            another_worker(daemon, lost)
        mixed.act([1, 10, 10], starts=[False, False, True])
        ask(daemon, "rollback")
        lost = hit(daemon, end)
        mixed.act([1, 10, 10])
        another_worker(daemon, lost)
        mixed.act([1, 10, 1], starts=[False, False, True])


def test_a_worker_lost_during_a_shadow_is_replaced_and_the_shadow_goes_on(summing: Daemon) -> None:
    path = "/v1/policies/summing"
    body = {"arms": [], "shadow": {"version": "1.1.0", "share": 1.0}}
    assert summing.operation(summing.ask("PUT", f"{path}/route", body))["outcome"] == "done"
    with pillion.connect(summing.address) as session:
        counting = Counting(session)
        for end in (None, *ENDS, *ENDS):
            if end is not None:
                lost = hit(summing, end)
            counting.act([1])
            if end is not None:
                another_worker(summing, lost)

        def compared() -> int:
            shadow = summing.ask("GET", f"{path}/shadow")[1]
            return int(shadow["rows"] + sum(shadow["skipped_rows"].values()))

        wait_until(lambda: compared() == 5)
    assert not summing.events("serving_died")
