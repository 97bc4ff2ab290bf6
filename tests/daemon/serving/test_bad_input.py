"""Bad input over a real socket: a typed error for each, the offender alone is affected."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np
import pytest
import zmq

import pillion
from pillion_protocol import HEAD_BYTES_MAX, Act, Action, Begin, Begun, Error, Hello, Ping, Pong, encode
from pilliond.limits import MESSAGE_BYTES_HARD_MAX
from tests.harness import Daemon, RawPeer, head

OBSERVATION = np.zeros(8, np.float32)


@pytest.fixture
def bystander(daemon: Daemon) -> Iterator[pillion.Session]:
    """A client that has an episode before the bad input, and must still have it afterwards."""
    with pillion.connect(daemon.address) as session:
        episode = session.begin(seed=1)
        before = episode.act(OBSERVATION)
        yield session
        assert episode.act(OBSERVATION) == before
        assert episode.last.fallback == ""


def refused(peer: RawPeer, *frames: bytes) -> Error:
    """The error that these frames get."""
    peer.send(*frames)
    reply, tensors = peer.hear()
    assert isinstance(reply, Error), reply
    assert tensors == []
    assert reply.message
    text = f"{reply.message} {reply.expected} {reply.actual}"
    assert not re.search(r"Traceback|\.py|/[a-z]+/|pilliond\.|memfd", text), text
    return reply


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([b""], "malformed"),
        ([b"\x05"], "malformed"),
        ([b"\xff\xff\xff\xff"], "unknown_message"),
        ([b"\x00" + b"\x93\x00\x00\x01"], "unknown_message"),
        ([b"GET / HTTP/1.1\r\n\r\n"], "unknown_message"),
        ([head(1, {"session": 0})], "malformed"),
        ([head(1, [0, 0])], "malformed"),
        ([head(1, [0, 0, "one"])], "malformed"),
        ([head(1, [-1, 0, 1])], "malformed"),
        ([head(1, [0, 0, 1, 1, "x" * 300])], "malformed"),
        ([encode(Hello(0, 0, 1))[:-1]], "malformed"),
        ([encode(Hello(0, 0, 1)) + b"\0"], "malformed"),
        ([b"\x01" + b"\xdd\xff\xff\xff\xff"], "malformed"),
        ([b"\x01" + b"\x91" * 5_000], "malformed"),
        ([b"\x01" + bytes(HEAD_BYTES_MAX)], "too_large"),
        ([encode(Hello(0, 0, 1)), b"a tensor"], "shape_mismatch"),
        ([encode(Hello(0, 0, 1)), *[b""] * 10_000], "shape_mismatch"),
        ([encode(Pong(5, 5, 5))], "epoch_stale"),
        ([encode(Hello(0, 0, 1, protocol_version=99))], "unsupported_protocol"),
        ([encode(Hello(0, 0, 1, policy="walker"))], "policy_not_found"),
        ([encode(Hello(0, 0, 1, policy="../walker"))], "policy_not_found"),
        ([encode(Hello(0, 0, 1, version_range=">=9"))], "version_not_found"),
        ([encode(Hello(0, 0, 1, version_range="newest"))], "version_not_found"),
        ([encode(Hello(0, 0, 1, spec_hash=bytes(32)))], "spec_mismatch"),
    ],
)
def test_garbage_gets_a_typed_error_and_disturbs_nobody(
    raw_peer: RawPeer, bystander: pillion.Session, frames: list[bytes], code: str
) -> None:
    assert refused(raw_peer, *frames).code == code


def test_an_error_names_the_request_even_where_only_its_opening_can_be_read(raw_peer: RawPeer) -> None:
    error = refused(raw_peer, head(5, [11, 22, 33, "not an episode"]))
    assert (error.session, error.epoch, error.sequence) == (11, 22, 33)


@pytest.mark.parametrize(
    ("tensors", "rows", "code"),
    [
        ([bytes(31)], 1, "shape_mismatch"),
        ([bytes(64)], 1, "shape_mismatch"),
        ([b""], 1, "shape_mismatch"),
        ([], 1, "shape_mismatch"),
        ([bytes(32), bytes(32)], 1, "shape_mismatch"),
        ([bytes(64)], 2, "rows_mismatch"),
        ([bytes(32)], 0, "rows_mismatch"),
        ([bytes(32)], 2**40, "rows_mismatch"),
        ([bytes(8 * 1024 * 1024)], 1, "shape_mismatch"),
        ([np.full(8, math.nan, np.float32).tobytes()], 1, "non_finite"),
        ([np.array([0, 0, 0, -math.inf, 0, 0, 0, 0], np.float32).tobytes()], 1, "non_finite"),
    ],
)
def test_an_act_that_does_not_fit_gets_a_typed_error_and_the_session_goes_on(
    raw_peer: RawPeer, bystander: pillion.Session, tensors: list[bytes], rows: int, code: str
) -> None:
    raw_peer.open()
    session, epoch = raw_peer.session, raw_peer.epoch
    begun, _ = raw_peer.ask(Begin(session, epoch, raw_peer.next(), [1]))
    assert isinstance(begun, Begun)
    act = Act(session, epoch, raw_peer.next(), begun.episode, rows, 0, True)
    error = refused(raw_peer, encode(act), *tensors)
    assert (error.code, error.sequence) == (code, act.sequence)
    assert error.expected
    assert error.actual
    good, _ = raw_peer.ask(Act(session, epoch, raw_peer.next(), begun.episode, 1, 0, True), bytes(32))
    assert isinstance(good, Action)


def test_an_unknown_episode_and_another_sessions_episode_are_refused_alike(daemon: Daemon, raw_peer: RawPeer) -> None:
    raw_peer.open()
    with RawPeer(daemon.address) as victim:
        victim.open()
        begun, _ = victim.ask(Begin(victim.session, victim.epoch, victim.next(), [1]))
        assert isinstance(begun, Begun)
        for episode in (begun.episode, 2**40):
            act = Act(raw_peer.session, raw_peer.epoch, raw_peer.next(), episode, 1, 0, True)
            assert refused(raw_peer, encode(act), bytes(32)).code == "episode_unknown"
        pong, _ = victim.ask(Ping(victim.session, victim.epoch, victim.next()))
        assert isinstance(pong, Pong)


def test_a_frame_beyond_the_hard_limit_closes_that_connection_alone(
    daemon: Daemon, raw_peer: RawPeer, bystander: pillion.Session
) -> None:
    raw_peer.send(encode(Hello(0, 0, 1)), bytes(MESSAGE_BYTES_HARD_MAX + 1))
    assert raw_peer.is_silent(0.5)
    assert raw_peer.open(2).session


def test_something_that_does_not_speak_zeromq_disturbs_nobody(daemon: Daemon, bystander: pillion.Session) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(daemon.address.removeprefix("ipc://"))
        stranger.sendall(b"\x00" * 1_000)


def test_a_peer_that_never_reads_is_dropped_and_nobody_waits_for_it(daemon: Daemon, bystander: pillion.Session) -> None:
    dropped = daemon.metric("pillion_sessions_dropped_total")
    with RawPeer(daemon.address) as peer:
        # No room on this side: everything piles up in the daemon, until it has had enough.
        peer.socket.setsockopt(zmq.RCVHWM, 1)
        peer.open()
        begun, _ = peer.ask(Begin(peer.session, peer.epoch, peer.next(), [1]))
        assert isinstance(begun, Begun)
        act = encode(Act(peer.session, peer.epoch, peer.next(), begun.episode, 1, 0, True))
        for _ in range(200_000):
            try:
                peer.socket.send_multipart([act, bytes(32)], zmq.NOBLOCK)
            except zmq.Again:
                if daemon.metric("pillion_sessions_dropped_total") > dropped:
                    break
    assert daemon.metric("pillion_sessions_dropped_total") == dropped + 1
