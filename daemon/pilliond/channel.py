"""What the control process and the serving process say to each other: msgpack over a socket pair.

The control process sends one `Assignment`, then perhaps `Drain`. The serving process answers with `Event`s.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final

import msgspec

from pillion_artifacts.card import Distribution, StateCard, Tolerance
from pillion_protocol import Spec
from pilliond.limits import ServingLimits
from pilliond.settings import ServingSettings

_MESSAGE_BYTES_MAX: Final = 1 << 20


class Assignment(msgspec.Struct, frozen=True, tag=True):
    """All that the serving process needs to know.

    The model itself is the sealed memfd `model_descriptor`, the golden pairs are `golden_descriptor`, -1 where the
    artifact has none.
    """

    epoch: int
    listen: list[str]
    policy: str
    version: str
    digest: bytes
    spec: Spec
    distribution: Distribution
    safe_action: list[float] | None
    tolerance: Tolerance
    states: list[StateCard]
    model_descriptor: int
    golden_descriptor: int
    page_descriptor: int
    threads: int
    limits: ServingLimits
    serving: ServingSettings
    group: int | None
    """The id of the group whose members may connect, beside this user and root."""


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Answer what was admitted, say goodbye, end."""

    reason: str


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Every bucket is warm and every address is listened at."""

    listen: list[str]
    engine: dict[str, Any]
    process: dict[str, Any]
    """How it uses its core, as the kernel and the interpreter say it, not the settings."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The serving process cannot start; `exit_code` is the sysexits code of why."""

    message: str
    exit_code: int


class Event(msgspec.Struct, frozen=True, tag=True):
    """Something for the log."""

    name: str
    fields: dict[str, Any]


Order = Assignment | Drain
Report = Ready | Failed | Event

_encoder = msgspec.msgpack.Encoder()
_order_decoder: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
_report_decoder: msgspec.msgpack.Decoder[Report] = msgspec.msgpack.Decoder(Report)


def make_channel() -> tuple[socket.socket, socket.socket]:
    """The control process's end and the serving process's end; the caller owns both."""
    control_end, serving_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control_end.setblocking(False)
    return control_end, serving_end


def send(end: socket.socket, message: Order | Report) -> None:
    """Sends a message whole; raises `BlockingIOError` where the other side does not read."""
    end.send(_encoder.encode(message), socket.MSG_NOSIGNAL)


def receive_order(end: socket.socket) -> Order | None:
    """The next order, or None where the control process is gone."""
    data = end.recv(_MESSAGE_BYTES_MAX)
    return _order_decoder.decode(data) if data else None


async def receive_report(end: socket.socket) -> Report | None:
    """The next report, or None where the serving process is gone."""
    try:
        data = await asyncio.get_running_loop().sock_recv(end, _MESSAGE_BYTES_MAX)
    except ConnectionResetError:
        return None
    return _report_decoder.decode(data) if data else None
