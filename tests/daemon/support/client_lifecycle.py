"""What a client of the lane goes through, step by step: where the hunt kills it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Generator, Iterator
from typing import Final, NoReturn

import numpy as np

import pillion
from tests.daemon.support.raw_lane import RawEpisodeGroup, RawLane
from tests.daemon.support.wide_policies import WIDTH

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
    "hung up",
)
"""Every phase of `life`, in order."""

_OBSERVATION: Final = np.ones(WIDTH, np.float32)
_DESCRIPTORS: Final = 50


def life(address: str) -> Iterator[str]:
    """Lives as a client by hand, and tells the name of each phase as it begins."""
    with RawLane(address) as lane:
        yield "connected"
        group = yield from _opening(lane)
        yield from _acting(lane, group)
        yield from _erring(lane)
        yield from _leaving(lane, group)


def _opening(lane: RawLane) -> Generator[str, None, RawEpisodeGroup]:
    lane.say(lane.conversation.hello()[1][0])
    yield "hello sent"
    lane.conversation.opened(lane.hear_frames())
    yield "welcome read"
    lane.say(lane.conversation.begin([1], True)[1][0])
    yield "begin sent"
    group = lane.take_begun()
    yield "begun read"
    group.map()
    yield "slots mapped"
    return group


def _acting(lane: RawLane, group: RawEpisodeGroup) -> Iterator[str]:
    group.set_generation(1, 0)
    group.map()[64 : 64 + 2 * WIDTH] = bytes(2 * WIDTH)
    yield "slot half written"
    group.write(1, 1, _OBSERVATION)
    yield "slot written"
    lane.say(group.act_head(1, 1))
    yield "act sent"
    lane.hear()
    yield "act answered"
    group.write(2, 2, _OBSERVATION)
    lane.say(group.act_head(1, 1))
    lane.say(group.act_head(2, 2))
    yield "two acts sent"
    lane.hear()
    lane.hear()
    yield "two acts answered"
    lane.say(group.act_head(), _OBSERVATION.tobytes())
    yield "act in a packet sent"
    lane.hear(4 * WIDTH)
    yield "act in a packet answered"


def _erring(lane: RawLane) -> Iterator[str]:
    lane.say(lane.conversation.begin([2, 3], True)[1][0])
    yield "second begin sent"
    lane.take_begun(2)
    yield "second begun read"
    lane.socket.send(b"\x00")
    yield "half a message sent"
    socket.send_fds(lane.socket, [b"\x00"], [lane.socket.fileno()] * _DESCRIPTORS)
    yield "descriptors sent"
    lane.hear()
    lane.hear()
    yield "both refused"


def _leaving(lane: RawLane, group: RawEpisodeGroup) -> Iterator[str]:
    lane.say(lane.conversation.end(group.episode)[1][0])
    yield "end sent"
    lane.hear()
    yield "end answered"
    lane.say(group.act_head(1, 1))
    yield "act after the end sent"
    lane.hear()
    lane.say(lane.conversation.goodbye("done")[1][0])
    yield "goodbye sent"
    lane.hear()
    yield "goodbye answered"
    lane.socket.shutdown(socket.SHUT_WR)
    yield "hung up"


def die_at(address: str, phase: str) -> NoReturn:
    """Lives until `phase` begins; there the process kills itself with SIGKILL."""
    for reached in life(address):
        if reached == phase:
            os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError(f"there is no phase {phase!r}")


def live_on(address: str) -> NoReturn:
    """Lives with the real client, one session after the other, until somebody kills the process."""
    while True:
        with pillion.connect(address) as session, session.begin(seed=1) as episode:
            for _ in range(3):
                episode.act(_OBSERVATION)
