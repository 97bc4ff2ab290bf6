"""Sessions that share a connection: each answer finds the session that awaits it, and nothing else does."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

import pillion
from pillion_bench.load_driver import LoadOrder, drive_swarm
from pillion_bench.swarm import SessionSwarm, refuse
from pillion_protocol import Act, Action, Error, ErrorCode, Goodbye, Message, Ping, Pong
from tests.harness import Answer, Daemon, FakeDaemon, honest

MakeFake = Callable[[Answer], FakeDaemon]
OBSERVATION: list[bytes | memoryview] = [bytes(8)]


def begun_swarm(address: str, sessions: int = 1, connections: int = 1) -> SessionSwarm:
    """A swarm with a handle of one row in every session."""
    swarm = SessionSwarm(address, sessions, connections)
    try:
        swarm.open()
        swarm.begin([[index] for index in range(sessions)])
    except BaseException:
        swarm.close()
        raise
    return swarm


@pytest.mark.parametrize("connections", [1, 3])
def test_each_answer_finds_its_session(daemon: Daemon, connections: int) -> None:
    with begun_swarm(daemon.address, 6, connections) as swarm:
        for rider in swarm.riders:
            rider.act([bytes(32)])
        came = [swarm.receive() for _ in swarm.riders]
        assert {rider.index for rider, _, _ in came} == set(range(6))
        for rider, message, tensors in came:
            assert isinstance(message, Action)
            assert (message.session, message.episode) == (rider.conversation.session, rider.episode)
            assert [len(tensor) for tensor in tensors] == [8]


def test_a_late_answer_is_dropped(fake_daemon: MakeFake) -> None:
    def late_first(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if isinstance(message, Act):
            fake.send(peer, fake.action(message, sequence=message.sequence - 1), fake.two())
        honest(fake, peer, message, tensors)

    with begun_swarm(fake_daemon(late_first).address) as swarm:
        swarm.riders[0].act(OBSERVATION)
        _, message, _ = swarm.receive()
        assert message.sequence == swarm.riders[0].conversation.sequence
        assert swarm.receive_now() is None


def test_a_ping_is_answered(fake_daemon: MakeFake) -> None:
    def pinging(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if isinstance(message, Act):
            fake.send(peer, Ping(message.session, message.epoch, 0))
        honest(fake, peer, message, tensors)

    fake = fake_daemon(pinging)
    with begun_swarm(fake.address) as swarm:
        for _ in range(2):
            swarm.riders[0].act(OBSERVATION)
            swarm.receive()
    assert any(isinstance(message, Pong) for message in fake.heard)


def test_a_goodbye_ends_the_run(fake_daemon: MakeFake) -> None:
    def leaving(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if isinstance(message, Act):
            fake.send(peer, Goodbye(message.session, message.epoch, 0, "tired"))
        else:
            honest(fake, peer, message, tensors)

    with begun_swarm(fake_daemon(leaving).address) as swarm:
        swarm.riders[0].act(OBSERVATION)
        with pytest.raises(pillion.EpisodeLostError, match="tired"):
            swarm.receive()


def test_a_refused_act_is_counted_and_the_load_goes_on(fake_daemon: MakeFake) -> None:
    def every_third(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if isinstance(message, Act) and message.sequence % 3 == 0:
            fake.send(peer, Error(message.session, message.epoch, message.sequence, ErrorCode.OVERLOADED, "busy"))
        else:
            honest(fake, peer, message, tensors)

    # on a busy machine a second may pass without an answer
    for seconds in (1, 4, 16):
        fake = fake_daemon(every_third)
        with begun_swarm(fake.address) as swarm:
            result = drive_swarm(swarm, [OBSERVATION] * 64, LoadOrder(0, time.monotonic_ns() + seconds * 1_000_000_000))
        if result.errors:
            break
    acts = [message for message in fake.heard if isinstance(message, Act)]
    refused = [act for act in acts if act.sequence % 3 == 0]
    late = 1  # the answer that ends the run comes when the counted time is over
    assert 0 <= len(refused) - result.errors <= late
    assert 0 <= len(acts) - len(refused) - len(result.latency_ns) // 8 <= late
    assert result.errors > 0


def test_a_refusal_is_raised_with_its_code(fake_daemon: MakeFake) -> None:
    def refusing(fake: FakeDaemon, peer: bytes, message: Message, tensors: list[bytes]) -> None:
        if isinstance(message, Act):
            fake.send(peer, Error(message.session, message.epoch, message.sequence, ErrorCode.OVERLOADED, "busy"))
        else:
            honest(fake, peer, message, tensors)

    with begun_swarm(fake_daemon(refusing).address) as swarm:
        rider = swarm.riders[0]
        rider.act(OBSERVATION)
        _, message, _ = swarm.receive()
        with pytest.raises(pillion.RefusedError) as refusal:
            refuse(rider, message)
    assert refusal.value.code == ErrorCode.OVERLOADED


def test_a_policy_that_is_not_served_is_refused(daemon: Daemon) -> None:
    with SessionSwarm(daemon.address, 1, 1, "nobody") as swarm, pytest.raises(pillion.RefusedError) as refusal:
        swarm.open()
    assert refusal.value.code == ErrorCode.POLICY_NOT_FOUND
