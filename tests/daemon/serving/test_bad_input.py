"""Bad input over real sockets: each gets a typed error, and no other client is affected."""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Iterator

import numpy as np
import pytest
import zmq

from pillion_protocol import HEAD_BYTES_MAX, Act, Action, Begin, Begun, Error, Hello, Ping, Pong, encode
from pilliond.limits import MESSAGE_BYTES_HARD_MAX
from tests.daemon.support.undisturbed_client import undisturbed_client
from tests.harness import Daemon, RawPeer, head


@pytest.fixture
def other_client(daemon: Daemon) -> Iterator[None]:
    """Another client, which the bad input must not disturb."""
    with undisturbed_client(daemon.address):
        yield


def refusal(peer: RawPeer, *frames: bytes) -> Error:
    """Returns the error that these frames get. Checks that it reveals no internals."""
    peer.send(*frames)
    reply, tensors = peer.hear()
    assert isinstance(reply, Error), reply
    assert tensors == []
    assert reply.message
    text = f"{reply.message} {reply.expected} {reply.actual}"
    assert not re.search(r"Traceback|\.py|/[a-z]+/|pilliond\.|memfd", text), text
    return reply


@pytest.mark.usefixtures("other_client")
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
def test_garbage_gets_a_typed_error_and_disturbs_no_other_client(
    raw_peer: RawPeer, frames: list[bytes], code: str
) -> None:
    assert refusal(raw_peer, *frames).code == code


def test_an_error_names_the_request_even_if_only_its_first_fields_are_valid(raw_peer: RawPeer) -> None:
    error = refusal(raw_peer, head(5, [11, 22, 33, "not an episode"]))
    assert (error.session, error.epoch, error.sequence) == (11, 22, 33)


@pytest.mark.usefixtures("other_client")
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
def test_an_act_that_does_not_match_the_spec_gets_a_typed_error_and_the_session_goes_on(
    raw_peer: RawPeer, tensors: list[bytes], rows: int, code: str
) -> None:
    raw_peer.open()
    session, epoch = raw_peer.session, raw_peer.epoch
    begun, _ = raw_peer.ask(Begin(session, epoch, raw_peer.next(), [1]))
    assert isinstance(begun, Begun)
    act = Act(session, epoch, raw_peer.next(), begun.episode, rows, 0, True)
    error = refusal(raw_peer, encode(act), *tensors)
    assert (error.code, error.sequence) == (code, act.sequence)
    assert error.expected
    assert error.actual
    good, _ = raw_peer.ask(Act(session, epoch, raw_peer.next(), begun.episode, 1, 0, True), bytes(32))
    assert isinstance(good, Action)


def test_an_unknown_episode_and_one_of_another_session_get_the_same_error(daemon: Daemon, raw_peer: RawPeer) -> None:
    raw_peer.open()
    with RawPeer(daemon.address) as other:
        other.open()
        begun, _ = other.ask(Begin(other.session, other.epoch, other.next(), [1]))
        assert isinstance(begun, Begun)
        for episode in (begun.episode, 2**40):
            act = Act(raw_peer.session, raw_peer.epoch, raw_peer.next(), episode, 1, 0, True)
            assert refusal(raw_peer, encode(act), bytes(32)).code == "episode_unknown"
        pong, _ = other.ask(Ping(other.session, other.epoch, other.next()))
        assert isinstance(pong, Pong)


@pytest.mark.usefixtures("other_client")
def test_a_frame_past_the_hard_limit_closes_only_its_connection(daemon: Daemon, raw_peer: RawPeer) -> None:
    raw_peer.send(encode(Hello(0, 0, 1)), bytes(MESSAGE_BYTES_HARD_MAX + 1))
    assert raw_peer.is_silent(0.5)
    assert raw_peer.open(2).session


@pytest.mark.usefixtures("other_client")
def test_a_peer_that_does_not_speak_zeromq_disturbs_no_client(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(daemon.address.removeprefix("ipc://"))
        stranger.sendall(b"\x00" * 1_000)


@pytest.mark.usefixtures("other_client")
def test_a_peer_that_never_reads_is_dropped_and_no_client_waits_for_it(daemon: Daemon) -> None:
    dropped = daemon.metric("pillion_sessions_dropped_total")
    with RawPeer(daemon.address) as peer:
        # This side queues nothing, so that the replies pile up in the daemon.
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
