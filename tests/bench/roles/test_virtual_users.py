"""Among sessions that share a connection, each answer reaches the session that awaits it, and no other."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

import pillion
from pillion_bench.roles.load_driver import LoadRequest, drive_pool
from pillion_bench.roles.virtual_users import VirtualUserPool, refuse
from pillion_protocol import Act, Action, Error, ErrorCode, Goodbye, Message, Ping, Pong
from tests.harness import Answer, Daemon, FakeDaemon, honest

MakeFake = Callable[[Answer], FakeDaemon]
OBSERVATION: list[bytes | memoryview] = [bytes(8)]


def begun_pool(address: str, sessions: int = 1, connections: int = 1) -> VirtualUserPool:
    """A pool with an episode of one row in every session."""
    pool = VirtualUserPool(address, sessions, connections)
    try:
        pool.open()
        pool.begin([[index] for index in range(sessions)])
    except BaseException:
        pool.close()
        raise
    return pool


@pytest.mark.parametrize("connections", [1, 3])
def test_each_answer_reaches_its_session(daemon: Daemon, connections: int) -> None:
    with begun_pool(daemon.address, 6, connections) as pool:
        for user in pool.users:
            user.act([bytes(32)])
        actual = [pool.receive() for _ in pool.users]
        assert {user.index for user, _, _ in actual} == set(range(6))
        for user, message, tensors in actual:
            assert isinstance(message, Action)
            assert (message.session, message.episode) == (user.conversation.session, user.episode)
            assert [len(tensor) for tensor in tensors] == [8]


def test_a_late_answer_is_dropped(fake_daemon: MakeFake) -> None:
    def late_first(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if isinstance(message, Act):
            fake.send(peer, fake.action(message, sequence=message.sequence - 1), fake.two())
        honest(fake, peer, message, tensors)

    with begun_pool(fake_daemon(late_first).address) as pool:
        pool.users[0].act(OBSERVATION)
        _, message, _ = pool.receive()
        assert message.sequence == pool.users[0].conversation.sequence
        assert pool.receive_now() is None


def test_a_ping_is_answered(fake_daemon: MakeFake) -> None:
    def pinging(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if isinstance(message, Act):
            fake.send(peer, Ping(message.session, message.epoch, 0))
        honest(fake, peer, message, tensors)

    fake = fake_daemon(pinging)
    with begun_pool(fake.address) as pool:
        for _ in range(2):
            pool.users[0].act(OBSERVATION)
            pool.receive()
    assert any(isinstance(message, Pong) for message in fake.heard)


def test_a_goodbye_ends_the_run(fake_daemon: MakeFake) -> None:
    def leaving(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if isinstance(message, Act):
            fake.send(peer, Goodbye(message.session, message.epoch, 0, "tired"))
        else:
            honest(fake, peer, message, tensors)

    with begun_pool(fake_daemon(leaving).address) as pool:
        pool.users[0].act(OBSERVATION)
        with pytest.raises(pillion.EpisodeLostError, match="tired"):
            pool.receive()


def test_a_refused_act_is_counted_and_the_load_continues(fake_daemon: MakeFake) -> None:
    def every_third(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if isinstance(message, Act) and message.sequence % 3 == 0:
            fake.send(peer, Error(message.session, message.epoch, message.sequence, ErrorCode.OVERLOADED, "busy"))
        else:
            honest(fake, peer, message, tensors)

    # On a busy machine a second may pass without an answer.
    for seconds in (1, 4, 16):
        fake = fake_daemon(every_third)
        with begun_pool(fake.address) as pool:
            result = drive_pool(pool, [OBSERVATION] * 64, LoadRequest(0, time.monotonic_ns() + seconds * 1_000_000_000))
        if result.errors:
            break
    acts = [message for message in fake.heard if isinstance(message, Act)]
    refused = [act for act in acts if act.sequence % 3 == 0]
    late = 1  # the answer that ends the run arrives after the counted time
    assert 0 <= len(refused) - result.errors <= late
    assert 0 <= len(acts) - len(refused) - len(result.latency_ns) // 8 <= late
    assert result.errors > 0


def test_a_refusal_is_raised_with_its_code(fake_daemon: MakeFake) -> None:
    def refusing(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if isinstance(message, Act):
            fake.send(peer, Error(message.session, message.epoch, message.sequence, ErrorCode.OVERLOADED, "busy"))
        else:
            honest(fake, peer, message, tensors)

    with begun_pool(fake_daemon(refusing).address) as pool:
        user = pool.users[0]
        user.act(OBSERVATION)
        _, message, _ = pool.receive()
        with pytest.raises(pillion.RefusedError) as refusal:
            refuse(user, message)
    assert refusal.value.code == ErrorCode.OVERLOADED


def test_a_policy_that_is_not_served_is_refused(daemon: Daemon) -> None:
    with VirtualUserPool(daemon.address, 1, 1, "nobody") as pool, pytest.raises(pillion.RefusedError) as refusal:
        pool.open()
    assert refusal.value.code == ErrorCode.POLICY_NOT_FOUND
