"""The asyncio client against a real daemon, on asyncio's loop and on uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import pillion
from pillion_artifacts import Store
from pillion_protocol import Act, Begin, End, Goodbye, Message
from tests.harness import STORE, TIME_UNIT_S, Answer, Daemon, FakeDaemon, honest, until

MakeFake = Callable[[Answer], FakeDaemon]

SHORT_S = 0.4 * TIME_UNIT_S
OBSERVATION = np.zeros(8, np.float32)


def observations(rows: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(1).normal(size=(rows, 8)).astype(np.float32)


def expected_actions(rows: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> list[int]:
    model = onnxruntime.InferenceSession(Store(STORE).load("lunar-lander").model, providers=["CPUExecutionProvider"])
    actions: list[int] = model.run(["action"], {"observation": rows})[0].tolist()
    return actions


async def test_the_calls_are_those_of_the_blocking_client(daemon: Daemon) -> None:
    rows = observations(4)
    with pillion.connect(daemon.address) as blocking:
        expected = (blocking.policy, blocking.version, blocking.digest, blocking.spec, blocking.limits)
    async with pillion.aio.connect(daemon.address, policy="lunar-lander", version=">=1") as session:
        assert (session.policy, session.version, session.digest, session.spec, session.limits) == expected
        assert await session.ping() > 0
        async with await session.begin(seed=7) as episode:
            assert int(await episode.act(rows[0], deterministic=True)) == expected_actions(rows)[0]
            assert episode.last.digest == session.digest
        group = await session.begin_many(4, seeds=[1, 2, 3, 4])
        actions = await group.act(rows, episode_start=[True] * 4, seeds=[5, 6, 7, 8])
        assert actions.tolist() == expected_actions(rows)
        await group.end()
        await group.end()
        with pytest.raises(pillion.PillionError, match="has ended"):
            await group.act(rows)


async def test_connect_may_be_awaited_and_the_session_closed_by_hand(daemon: Daemon) -> None:
    session = await pillion.aio.connect(daemon.address)
    await session.close()
    await session.close()
    with pytest.raises(pillion.PillionError, match="connect again"):
        await session.begin()
    with pytest.raises(pillion.PillionError, match="connect again"):
        await session.ping()


async def test_several_episodes_act_concurrently(daemon: Daemon) -> None:
    rows = observations(12)
    expected = expected_actions(rows)

    async def drive(session: pillion.aio.Session, start: int) -> list[int]:
        async with await session.begin(seed=start) as episode:
            return [int(await episode.act(np.roll(rows, -start, axis=0)[step])) for step in range(12)]

    async with pillion.aio.connect(daemon.address) as session:
        actual = await asyncio.gather(*(drive(session, start) for start in range(12)))
    assert actual == [expected[start:] + expected[:start] for start in range(12)]


async def test_the_same_seed_draws_what_the_blocking_client_draws(daemon: Daemon) -> None:
    rows = observations(30)
    with pillion.connect(daemon.address) as blocking:
        episode = blocking.begin(seed=7)
        expected = [int(episode.act(row, deterministic=False)) for row in rows]
    async with pillion.aio.connect(daemon.address) as session:
        same = await session.begin(seed=7)
        assert [int(await same.act(row, deterministic=False)) for row in rows] == expected


async def test_a_bad_observation_is_refused_before_it_is_sent(daemon: Daemon) -> None:
    async with pillion.aio.connect(daemon.address) as session:
        episode = await session.begin()
        with pytest.raises(pillion.InvalidObservationError):
            await episode.act(np.zeros(9, np.float32))
        with pytest.raises(pillion.InvalidObservationError):
            await session.begin_many(2, seeds=[1])
        with pytest.raises(pillion.RefusedError) as refused:
            await episode.act(np.full(8, np.nan, np.float32))
        assert refused.value.code == "non_finite"
        assert (await episode.act(OBSERVATION)).shape == ()


async def test_a_policy_that_the_daemon_does_not_serve_is_refused(daemon: Daemon) -> None:
    with pytest.raises(pillion.RefusedError) as refused:
        await pillion.aio.connect(daemon.address, policy="mars-lander")
    assert (refused.value.code, refused.value.actual) == ("policy_not_found", "mars-lander")


# Waiting


def silent_on(*kinds: type[Message]) -> Answer:
    def answer(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if not isinstance(message, kinds):
            honest(fake, peer, message, tensors)

    return answer


async def test_every_wait_ends(fake_daemon: MakeFake, tmp_path: Path) -> None:
    with pytest.raises(pillion.UnavailableError, match="is pilliond running"):
        await pillion.aio.connect(f"ipc://{tmp_path}/nobody.sock", timeout_s=SHORT_S)
    async with pillion.aio.connect(fake_daemon(silent_on(Begin)).address, timeout_s=SHORT_S) as session:
        with pytest.raises(pillion.RequestTimeoutError):
            await session.begin()
    async with pillion.aio.connect(fake_daemon(silent_on(Act, End)).address, timeout_s=SHORT_S) as session:
        episode = await session.begin()
        with pytest.raises(pillion.RequestTimeoutError):
            await episode.act(np.zeros(2, np.float32))
        with pytest.raises(pillion.RequestTimeoutError):
            await episode.end()


async def test_begins_that_wait_for_another_begin_time_out_too(fake_daemon: MakeFake) -> None:
    async with pillion.aio.connect(fake_daemon(silent_on(Begin)).address, timeout_s=SHORT_S) as session:
        results = await asyncio.gather(*(session.begin() for _ in range(10)), return_exceptions=True)
    assert {type(result) for result in results} == {pillion.RequestTimeoutError}


async def test_a_hello_is_sent_as_soon_as_there_is_a_connection_and_not_at_the_next_resend(
    fake_daemon: MakeFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pillion.aio.RESEND_S", 1_000.0)
    fake = fake_daemon(honest)
    async with pillion.aio.connect(fake.address) as session:
        assert session.policy == "fake"


async def test_a_cancelled_act_leaves_the_session_and_the_episode_usable(fake_daemon: MakeFake) -> None:
    held: list[tuple[bytes, Act]] = []

    def answer(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if isinstance(message, Act) and not held:
            held.append((peer, message))
        elif isinstance(message, Act):
            fake.send(peer, fake.action(held[0][1]), (1).to_bytes(8, "little"))
            fake.send(peer, fake.action(message), fake.two())
        else:
            honest(fake, peer, message, tensors)

    fake = fake_daemon(answer)
    async with pillion.aio.connect(fake.address) as session:
        episode, other = await session.begin(), await session.begin()
        acting = asyncio.ensure_future(episode.act(np.zeros(2, np.float32)))
        await until(lambda: bool(held))
        acting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await acting
        assert not session._waiting
        assert await episode.act(np.zeros(2, np.float32)) == 2
        assert await other.act(np.zeros(2, np.float32)) == 2


async def test_acts_cancelled_at_any_moment_leave_later_answers_correct(daemon: Daemon) -> None:
    rows = observations(40)
    expected = expected_actions(rows)
    async with pillion.aio.connect(daemon.address) as session:
        episode = await session.begin(seed=7)
        for step, row in enumerate(rows):
            acting = asyncio.ensure_future(episode.act(row))
            for _ in range(step % 5):
                await asyncio.sleep(0)
            acting.cancel()
            results = await asyncio.gather(acting, return_exceptions=True)
            for result in results:
                assert isinstance(result, (asyncio.CancelledError, np.ndarray))
                assert isinstance(result, asyncio.CancelledError) or result == expected[step]
            assert int(await episode.act(row)) == expected[step]
        assert not session._waiting


async def test_a_begin_cancelled_at_any_moment_leaves_the_next_one_correct(daemon: Daemon) -> None:
    async with pillion.aio.connect(daemon.address) as session:
        for steps in range(6):
            beginning = asyncio.ensure_future(session.begin())
            for _ in range(steps):
                await asyncio.sleep(0)
            beginning.cancel()
            await asyncio.gather(beginning, return_exceptions=True)
            assert (await (await session.begin()).act(OBSERVATION)).shape == ()


async def test_closing_fails_every_call_that_waits(fake_daemon: MakeFake) -> None:
    fake = fake_daemon(silent_on(Act))
    session = await pillion.aio.connect(fake.address)
    episodes = [await session.begin() for _ in range(3)]
    acting = [asyncio.ensure_future(episode.act(np.zeros(2, np.float32))) for episode in episodes]
    await until(lambda: fake.count(Act) == 3)
    await session.close()
    results = await asyncio.gather(*acting, return_exceptions=True)
    assert {type(result) for result in results} == {pillion.EpisodeLostError}
    assert "closed here" in str(results[0])


async def test_closing_fails_a_begin_that_waits(fake_daemon: MakeFake) -> None:
    fake = fake_daemon(silent_on(Begin))
    session = await pillion.aio.connect(fake.address)
    beginning = asyncio.ensure_future(session.begin())
    await until(lambda: fake.count(Begin) > 0)
    await session.close()
    with pytest.raises(pillion.PillionError):
        await beginning


async def test_a_goodbye_fails_every_call_that_waits_with_its_reason(fake_daemon: MakeFake) -> None:
    def answer(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if isinstance(message, Act):
            fake.send(peer, Goodbye(fake.session, fake.epoch, 0, "the daemon got SIGTERM"))
        else:
            honest(fake, peer, message, tensors)

    async with pillion.aio.connect(fake_daemon(answer).address) as session:
        episode = await session.begin()
        with pytest.raises(pillion.EpisodeLostError, match="the daemon got SIGTERM"):
            await episode.act(np.zeros(2, np.float32))
        with pytest.raises(pillion.EpisodeLostError, match="the daemon got SIGTERM"):
            await episode.act(np.zeros(2, np.float32))
        assert session._conversation.is_open is False


async def test_no_task_stays_in_the_loop(daemon: Daemon) -> None:
    before = len(asyncio.all_tasks())
    for _ in range(3):
        async with pillion.aio.connect(daemon.address) as session:
            await (await session.begin()).act(OBSERVATION)
    assert len(asyncio.all_tasks()) == before
