"""The client at the end of `protocol/README.md`, written out with ZeroMQ and msgpack, without any code of Pillion."""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
import struct
import time
from typing import Any

import msgspec
import pytest
import zmq

from tests.conftest import StartDaemon
from tests.harness import WAIT_S_MAX, Daemon

HELLO, WELCOME, BEGIN, BEGUN, ACT, ACTION, END, ENDED, PING, PONG, ERROR, GOODBYE = range(1, 13)
LOST = ("epoch_stale", "session_unknown")


class RefusedError(Exception):
    """An error message; its arguments are code, message, expected and actual."""


class EpisodeLostError(Exception):
    """The daemon no longer has the episode group."""


class PageClient:
    """The client that a reader of the page would write."""

    def __init__(self, address: str, **hello: Any) -> None:
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        for option, value in ((zmq.IMMEDIATE, 1), (zmq.LINGER, 100), (zmq.RECONNECT_IVL, 20)):
            self.socket.setsockopt(option, value)
        self.socket.connect(address)
        self.hello = hello
        self.counter = secrets.randbits(61)
        self.opened = 0
        try:
            self.open()
        except BaseException:
            self.socket.close()
            raise

    def open(self) -> None:
        self.session = self.epoch = 0
        answer = self.ask(HELLO, 1, "a page", *self.hello.values())[0]
        self.session, self.epoch, self.spec = answer[0], answer[1], msgspec.msgpack.decode(answer[8])
        assert hashlib.sha256(answer[8]).digest() == answer[9]
        self.opened += 1

    def ask(self, kind: int, *fields: Any, tensors: tuple[bytes, ...] = ()) -> tuple[list[Any], list[bytes]]:
        self.counter += 1
        opening = [self.session, self.epoch, self.counter]
        request = [bytes([kind]) + msgspec.msgpack.encode([*opening, *fields]), *tensors]
        send_at = time.monotonic()
        give_up = send_at + 3 * WAIT_S_MAX
        while (now := time.monotonic()) < give_up:
            if not self.socket.poll(max(0, round((min(send_at, give_up) - now) * 1_000))):
                send_at = time.monotonic() + (1.0 if self.send(request) else 0.05)
                continue
            head, *frames = self.socket.recv_multipart()
            answer = self.accept(head[0], msgspec.msgpack.decode(head[1:]), kind)
            if answer is not None:
                return answer, frames
        raise TimeoutError

    def send(self, frames: list[bytes]) -> bool:
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def accept(self, kind: int, fields: list[Any], asked: int) -> list[Any] | None:
        """Returns the fields of an answer, or None if the message must be dropped."""
        if self.session == 0:
            if kind not in (WELCOME, ERROR):
                return None
        else:
            if fields[0] != self.session or fields[1] != self.epoch:
                return None
            if kind == PING:
                self.send([bytes([PONG]) + msgspec.msgpack.encode(fields[:3])])
                return None
            if kind == GOODBYE and fields[2] == 0:
                raise EpisodeLostError(fields[3])
        if fields[2] != self.counter:
            return None
        if kind == ERROR:
            raise EpisodeLostError(fields[4]) if fields[3] in LOST else RefusedError(*fields[3:])
        return fields if kind == (GOODBYE if asked == GOODBYE else asked + 1) else None

    def begin(self, seeds: list[int]) -> int:
        try:
            return int(self.ask(BEGIN, seeds)[0][3])
        except EpisodeLostError:
            self.open()
            return int(self.ask(BEGIN, seeds)[0][3])

    def act(self, group: int, rows: int, observation: bytes, *more: Any) -> tuple[list[Any], list[bytes]]:
        return self.ask(ACT, group, rows, 0, *(more or (True,)), tensors=(observation,))

    def end(self, group: int) -> int:
        return int(self.ask(END, group)[0][4])

    def close(self) -> None:
        self.ask(GOODBYE)
        self.socket.close()


ONE_ROW = struct.pack("<8f", 0.1, 1.2, 0.0, -0.5, 0.05, 0.0, 0.0, 0.0)


def test_it_plays_episodes_against_a_real_daemon(daemon: Daemon) -> None:
    client = PageClient(daemon.address)
    observation, outputs = client.spec
    assert observation[0][:3] == ["observation", "float32", [8]]
    assert outputs[0][:4] == ["action", "int64", [], "Discrete"]
    single = client.begin([7])
    fields, frames = client.act(single, 1, ONE_ROW)
    assert (fields[3], fields[4], len(fields)) == (single, 1, 15)
    (action,) = struct.unpack("<q", frames[0])
    assert 0 <= action <= 3
    group = client.begin([1, 2, 3])
    fields, frames = client.act(group, 3, ONE_ROW * 3, True, b"\x01\x00\x01", [4, 5])
    assert struct.unpack("<3q", frames[0]) == (action,) * 3
    assert client.end(group) == 1
    assert client.end(single) == 1
    client.close()


def test_an_error_states_what_was_expected_and_what_the_daemon_got(daemon: Daemon) -> None:
    with pytest.raises(RefusedError) as refused:
        PageClient(daemon.address, policy="mars-lander")
    assert refused.value.args[0] == "policy_not_found"
    with pytest.raises(RefusedError) as refused:
        PageClient(daemon.address, policy="", version_range="^1.2")
    assert refused.value.args[0] == "version_not_found"
    assert refused.value.args[2:] == ("comparators joined by commas, such as >=1.2,<2", "^1.2")
    client = PageClient(daemon.address)
    group = client.begin([7])
    with pytest.raises(RefusedError) as refused:
        client.act(group, 1, ONE_ROW[:-1])
    assert refused.value.args[0] == "shape_mismatch"
    assert refused.value.args[2:] == ("float32 [1, 8], 32 bytes", "31 bytes")
    assert len(client.act(group, 1, ONE_ROW)[1][0]) == 8
    client.close()


def test_it_finds_the_daemon_again_after_a_restart(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    client = PageClient(daemon.address)
    group = client.begin([7])
    before = client.act(group, 1, ONE_ROW)[1]
    epoch = client.epoch
    os.kill(daemon.serving_pid, signal.SIGKILL)
    with pytest.raises(EpisodeLostError):
        client.act(group, 1, ONE_ROW)
    group = client.begin([7])
    assert client.act(group, 1, ONE_ROW)[1] == before
    assert client.epoch > epoch
    assert client.opened == 2
    client.close()
