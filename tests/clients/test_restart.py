"""The daemon dies, drains or restarts; budgets run out. Each test starts its own daemon where it needs one."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

import pillion
from pillion_protocol import Act, Begin, Begun, Error, Goodbye, Pong
from tests.clients.conftest import SAFE_ACTION
from tests.conftest import StartDaemon
from tests.harness import WAIT_S_MAX, Daemon, RawPeer

OBSERVATION = np.zeros(8, np.float32)
DRIVE: dict[str, Any] = {"camera": np.full((2, 2), 9, np.uint8), "speed": np.ones(2, np.float32), "gear": np.int64(1)}


def test_after_the_serving_process_was_killed_the_episode_is_lost_and_a_new_one_begins(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon()
    with pillion.connect(daemon.address, timeout_s=3 * WAIT_S_MAX) as session:
        episode, idle = session.begin(seed=7), session.begin(seed=8)
        action = episode.act(OBSERVATION)
        first_epoch = session._conversation.epoch
        os.kill(daemon.serving_pid, signal.SIGKILL)
        with pytest.raises(pillion.EpisodeLostError, match="the serving process has restarted"):
            episode.act(OBSERVATION)
        with pytest.raises(pillion.EpisodeLostError):
            idle.act(OBSERVATION)
        fresh = session.begin(seed=7)
        assert fresh.act(OBSERVATION) == action
        assert session._conversation.epoch > first_epoch
        with pytest.raises(pillion.EpisodeLostError):
            episode.act(OBSERVATION)
        episode.end()
    assert len(daemon.events("serving_died")) == 1
    assert daemon.health()["serving"]["starts"] == 2


async def test_after_the_serving_process_was_killed_asyncio_episodes_are_lost_too(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    async with pillion.aio.connect(daemon.address, timeout_s=3 * WAIT_S_MAX) as session:
        episodes = [await session.begin(seed=seed) for seed in range(3)]
        daemon.kill_serving()
        for episode in episodes:
            with pytest.raises(pillion.EpisodeLostError):
                await episode.act(OBSERVATION)
        assert (await (await session.begin(seed=7)).act(OBSERVATION)).shape == ()


def test_a_policy_continues_after_the_serving_process_was_killed(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    with pillion.Policy(daemon.address, timeout_s=3 * WAIT_S_MAX) as policy:
        before, _ = policy.predict(OBSERVATION, deterministic=True)
        daemon.kill_serving()
        after, _ = policy.predict(OBSERVATION, deterministic=True)
    assert before == after


def test_at_sigterm_a_client_gets_a_goodbye_with_the_reason(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    with pillion.connect(daemon.address, timeout_s=WAIT_S_MAX) as session:
        episode = session.begin()
        episode.act(OBSERVATION)
        assert daemon.stop() == 0
        with pytest.raises(pillion.EpisodeLostError, match="SIGTERM"):
            episode.act(OBSERVATION)


def test_at_sigterm_a_client_that_waits_for_nothing_gets_it_too(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    with RawPeer(daemon.address) as peer:
        peer.open()
        assert daemon.stop() == 0
        goodbye, _ = peer.hear()
        assert isinstance(goodbye, Goodbye)
        assert (goodbye.session, goodbye.epoch, goodbye.sequence) == (peer.session, peer.epoch, 0)
        assert "SIGTERM" in goodbye.reason


def test_what_was_sent_before_sigterm_is_answered_before_goodbye_is_said(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    with RawPeer(daemon.address) as peer:
        peer.open()
        groups = []
        for _ in range(20):
            begun, _ = peer.ask(Begin(peer.session, peer.epoch, peer.next(), [1] * 64))
            assert isinstance(begun, Begun)
            groups.append(begun.episode)
        for group in groups:
            peer.say(Act(peer.session, peer.epoch, peer.next(), group, 64, deterministic=True), bytes(64 * 32))
        os.kill(daemon.pid, signal.SIGTERM)
        answered = []
        while not isinstance((message := peer.hear()[0]), Goodbye):
            answered.append(message)
    assert daemon.stop() == 0
    assert all(message.session == peer.session for message in answered)
    assert len({message.sequence for message in answered}) == len(answered)


def test_a_client_that_waits_when_the_daemon_starts_gets_its_session(start_daemon: StartDaemon) -> None:
    address = start_daemon().address
    stopped = start_daemon()
    stopped.stop()
    result: list[object] = []

    def connect() -> None:
        try:
            with pillion.connect(stopped.address, timeout_s=3 * WAIT_S_MAX) as session:
                result.append(session.policy)
        except pillion.PillionError as error:
            result.append(error)

    waiting = threading.Thread(target=connect)
    waiting.start()
    time.sleep(0.05)
    assert not result
    start_daemon(listen=[stopped.address])
    waiting.join(3 * WAIT_S_MAX)
    assert result == ["lunar-lander"]
    assert address != stopped.address


def test_the_daemon_serves_ipc_and_tcp_at_once(start_daemon: StartDaemon, short_path: object) -> None:
    daemon = start_daemon(listen=[f"ipc://{short_path}/both.sock", "tcp://127.0.0.1:0"])
    assert [address.partition(":")[0] for address in daemon.addresses] == ["ipc", "tcp"]
    for address in daemon.addresses:
        with pillion.connect(address) as session:
            assert session.begin().act(OBSERVATION).shape == ()


# Budgets: an act with a budget of 1 µs is always too late, because reading it takes longer.


def test_an_act_is_refused_and_not_run_if_its_budget_runs_out(daemon: Daemon) -> None:
    with pillion.connect(daemon.address) as session:
        episode = session.begin()
        ran = daemon.metric("pillion_inferences_total")
        with pytest.raises(pillion.RefusedError) as refused:
            episode.act(OBSERVATION, budget_us=1)
        assert refused.value.code == "deadline_exceeded"
        assert daemon.metric("pillion_inferences_total") == ran
        assert episode.act(OBSERVATION, budget_us=60_000_000).shape == ()


def test_a_session_with_the_fallback_zeros_gets_zeros(driver_daemon: Daemon) -> None:
    with pillion.connect(driver_daemon.address, fallback="zeros") as session:
        group = session.begin_many(3)
        batch = {name: np.stack([value] * 3) for name, value in DRIVE.items()}
        assert group.act(batch).any()
        assert not group.act(batch, budget_us=1).any()
        assert group.last.fallback == "zeros"
        assert (group.last.timings.batch_rows, group.last.timings.batch_close) == (0, "0")
        assert all(not output.any() for output in group.last.outputs.values())


def test_a_session_with_the_fallback_last_gets_the_last_action(driver_daemon: Daemon) -> None:
    with pillion.connect(driver_daemon.address, fallback="last") as session:
        episode = session.begin()
        with pytest.raises(pillion.RefusedError) as refused:
            episode.act(DRIVE, budget_us=1)
        assert refused.value.code == "deadline_exceeded"
        first = episode.act(DRIVE)
        outputs = episode.last.outputs
        other = {**DRIVE, "speed": np.zeros(2, np.float32)}
        for _ in range(2):
            assert np.array_equal(episode.act(other, budget_us=1), first)
            assert episode.last.fallback == "last"
            assert all(np.array_equal(episode.last.outputs[name], outputs[name]) for name in outputs)
        assert not np.array_equal(episode.act(other), first)
        assert episode.last.fallback == ""


def test_the_safe_action_of_the_card_stands_in_where_the_session_asked_for_it(driver_daemon: Daemon) -> None:
    with pillion.connect(driver_daemon.address, fallback="safe") as session:
        group = session.begin_many(2)
        batch = {name: np.stack([value] * 2) for name, value in DRIVE.items()}
        assert group.act(batch, budget_us=1).tolist() == [SAFE_ACTION] * 2
        assert group.last.fallback == "safe"
        assert group.last.outputs["value"].tolist() == [0.0, 0.0]


def test_the_episode_starts_of_an_act_that_was_not_run_are_kept_for_the_next(driver_daemon: Daemon) -> None:
    with pillion.connect(driver_daemon.address) as session:
        named, late = session.begin_many(1, seeds=[7]), session.begin_many(1, seeds=[8])
        batch = {name: value[None] for name, value in DRIVE.items()}
        late.act(batch)
        with pytest.raises(pillion.RefusedError):
            late.act(batch, episode_start=[True], seeds=[7], budget_us=1)
        assert np.array_equal(late.act(batch, deterministic=False), named.act(batch, deterministic=False))


# Superseding


def test_a_newer_act_of_a_group_replaces_one_that_waits(start_daemon: StartDaemon) -> None:
    """Two lock-step groups: the first act waits long for the other group, until the second act supersedes it."""
    daemon = start_daemon(settings={"limits__batch_wait_us_max": 1_000_000})
    with RawPeer(daemon.address) as peer:
        peer.open()
        groups = []
        for _ in range(2):
            begun, _ = peer.ask(Begin(peer.session, peer.epoch, peer.next(), [1]))
            assert isinstance(begun, Begun)
            groups.append(begun.episode)
        first, second, third = peer.next(), peer.next(), peer.next()
        for sequence, group in ((first, groups[0]), (second, groups[0]), (third, groups[1])):
            peer.say(Act(peer.session, peer.epoch, sequence, group, deterministic=True), bytes(32))
        superseded, *answers = (peer.hear()[0] for _ in range(3))
        assert isinstance(superseded, Error)
        assert (superseded.sequence, superseded.code) == (first, "superseded")
        assert {answer.sequence for answer in answers} == {second, third}
        assert not any(isinstance(answer, Error) for answer in answers)
        peer.say(Act(peer.session, peer.epoch, first, groups[0], deterministic=True), bytes(32))
        stale = peer.hear()[0]
        assert isinstance(stale, Error)
        assert stale.code == "sequence_stale"


def test_a_pong_gets_no_answer(raw_peer: RawPeer) -> None:
    raw_peer.open()
    raw_peer.say(Pong(raw_peer.session, raw_peer.epoch, 0))
    assert raw_peer.is_silent()
