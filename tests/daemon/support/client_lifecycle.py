"""The phases of a lane client's life. The client hunt kills clients at each of them."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Generator, Iterator
from typing import Final, NoReturn

import numpy as np

import pillion
from tests.daemon.support.policies.wide import WIDTH
from tests.daemon.support.raw_lane import RawEpisodeGroup, RawLane

PHASES: Final = (
    "connected",
    "hello sent",
    "welcome read",
    "begin sent",
    "begun read",
    "slots mapped",
    "slot half written",
    "slot written",
    "act sent",
    "act answered",
    "two acts sent",
    "two acts answered",
    "act in a packet sent",
    "act in a packet answered",
    "second begin sent",
    "second begun read",
    "half a message sent",
    "descriptors sent",
    "both refused",
    "end sent",
    "end answered",
    "act after the end sent",
    "goodbye sent",
    "goodbye answered",
    "disconnected",
)
"""Every phase of `lifecycle`, in order."""

_OBSERVATION: Final = np.ones(WIDTH, np.float32)
_DESCRIPTORS: Final = 50


def lifecycle(address: str) -> Iterator[str]:
    """Runs a raw client through every phase and yields the name of each as it begins."""
    with RawLane(address) as lane:
        yield "connected"
        group = yield from _open(lane)
        yield from _act(lane, group)
        yield from _send_errors(lane)
        yield from _leave(lane, group)


def _open(lane: RawLane) -> Generator[str, None, RawEpisodeGroup]:
    lane.send(lane.conversation.hello()[1][0])
    yield "hello sent"
    lane.conversation.opened(lane.receive_reply())
    yield "welcome read"
    lane.send(lane.conversation.begin([1], True)[1][0])
    yield "begin sent"
    group = lane.receive_begun()
    yield "begun read"
    group.map()
    yield "slots mapped"
    return group


def _act(lane: RawLane, group: RawEpisodeGroup) -> Iterator[str]:
    group.set_generation(1, 0)
    group.map()[64 : 64 + 2 * WIDTH] = bytes(2 * WIDTH)
    yield "slot half written"
    group.write(1, 1, _OBSERVATION)
    yield "slot written"
    lane.send(group.act_head(1, 1))
    yield "act sent"
    lane.receive()
    yield "act answered"
    group.write(2, 2, _OBSERVATION)
    lane.send(group.act_head(1, 1))
    lane.send(group.act_head(2, 2))
    yield "two acts sent"
    lane.receive()
    lane.receive()
    yield "two acts answered"
    lane.send(group.act_head(), _OBSERVATION.tobytes())
    yield "act in a packet sent"
    lane.receive(4 * WIDTH)
    yield "act in a packet answered"


def _send_errors(lane: RawLane) -> Iterator[str]:
    lane.send(lane.conversation.begin([2, 3], True)[1][0])
    yield "second begin sent"
    lane.receive_begun(2)
    yield "second begun read"
    lane.socket.send(b"\x00")
    yield "half a message sent"
    socket.send_fds(lane.socket, [b"\x00"], [lane.socket.fileno()] * _DESCRIPTORS)
    yield "descriptors sent"
    lane.receive()
    lane.receive()
    yield "both refused"


def _leave(lane: RawLane, group: RawEpisodeGroup) -> Iterator[str]:
    lane.send(lane.conversation.end(group.episode)[1][0])
    yield "end sent"
    lane.receive()
    yield "end answered"
    lane.send(group.act_head(1, 1))
    yield "act after the end sent"
    lane.receive()
    lane.send(lane.conversation.goodbye("done")[1][0])
    yield "goodbye sent"
    lane.receive()
    yield "goodbye answered"
    lane.socket.shutdown(socket.SHUT_WR)
    yield "disconnected"


def kill_self_at(address: str, phase: str) -> NoReturn:
    """Runs a raw client until `phase` begins; then the process sends itself SIGKILL."""
    for reached in lifecycle(address):
        if reached == phase:
            os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError(f"unknown phase {phase!r}")


def act_until_killed(address: str) -> NoReturn:
    """Opens one session after the other with the real client, until the process is killed."""
    while True:
        with pillion.connect(address) as session, session.begin(seed=1) as episode:
            for _ in range(3):
                episode.act(_OBSERVATION)
