"""The roles of the floor: ping-pong with nothing behind it, over raw pyzmq and over a raw Unix socket. Hot path."""

from __future__ import annotations

import errno
import gc
import socket
import time
from array import array
from collections.abc import Callable
from typing import Final

import msgspec
import zmq

from pillion_bench.errors import BenchError
from pillion_bench.exchange import Exchange
from pillion_bench.process.worker import Pipe

_STOP: Final = b"stop"
_WARM_UP_S_MAX: Final = 0.1
_WAIT_MS: Final = 5_000
_TOO_LARGE: Final = frozenset({errno.EMSGSIZE, errno.ENOBUFS})
_SOCKET_BUFFER_BYTES: Final = 4 * 1024 * 1024


class EchoPlan(msgspec.Struct, frozen=True):
    """Where the echo is (a path), and what travels."""

    path: str
    exchange: Exchange


class PingOrder(msgspec.Struct, frozen=True):
    """How long to ping."""

    seconds: float


class PingResult(msgspec.Struct, frozen=True):
    """Round trips in ns, as int64; none where the carrier cannot take messages of this size."""

    round_trip_ns: bytes


def serve_zmq(pipe: Pipe) -> None:
    """A ROUTER that answers every message with the frames of an action, until it is told to stop."""
    plan = _plan(pipe)
    reply = [bytes(size) for size in plan.exchange.action_bytes]
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 0)
        router.bind(f"ipc://{plan.path}")
        pipe.tell("ready")
        while True:
            message = router.recv_multipart()
            if message[1] == _STOP:
                return
            router.send_multipart([message[0], *reply])


def ping_zmq(pipe: Pipe) -> None:
    """A DEALER that sends the frames of an act and waits for the answer."""
    plan = _plan(pipe)
    message = [bytes(size) for size in plan.exchange.act_bytes]
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 200)
        dealer.setsockopt(zmq.RCVTIMEO, _WAIT_MS)
        dealer.connect(f"ipc://{plan.path}")
        pipe.tell("ready")

        def round_trip() -> None:
            dealer.send_multipart(message)
            dealer.recv_multipart()

        _ping_when_told(pipe, round_trip)
        dealer.send(_STOP)


def serve_lane(pipe: Pipe) -> None:
    """A SOCK_SEQPACKET socket that answers every packet with one as long as an action, until the peer is gone."""
    plan = _plan(pipe)
    reply = bytes(sum(plan.exchange.action_bytes))
    buffer = bytearray(sum(plan.exchange.act_bytes))
    with _seqpacket() as listener:
        listener.bind(plan.path)
        listener.listen(1)
        pipe.tell("ready")
        connection, _ = listener.accept()
        with connection:
            _widen(connection)
            while connection.recv_into(buffer):
                connection.send(reply)


def ping_lane(pipe: Pipe) -> None:
    """Sends a packet as long as an act and waits for the answer."""
    plan = _plan(pipe)
    message = bytes(sum(plan.exchange.act_bytes))
    buffer = bytearray(sum(plan.exchange.action_bytes))
    with _seqpacket() as connection:
        _widen(connection)
        connection.connect(plan.path)
        pipe.tell("ready")

        def round_trip() -> None:
            connection.send(message)
            connection.recv_into(buffer)

        _ping_when_told(pipe, round_trip)


def _plan(pipe: Pipe) -> EchoPlan:
    plan = pipe.hear(EchoPlan)
    if plan is None:
        raise BenchError("the bench went before it said what to do")
    return plan


def _ping_when_told(pipe: Pipe, round_trip: Callable[[], None]) -> None:
    while (order := pipe.hear(PingOrder)) is not None:
        pipe.tell(PingResult(_ping(order.seconds, round_trip)))


def _ping(seconds: float, round_trip: Callable[[], None]) -> bytes:
    clock = time.monotonic_ns
    taken = array("q")
    gc.collect()
    gc.disable()
    warm_ns = clock() + int(min(_WARM_UP_S_MAX, seconds / 4) * 1e9)
    end_ns = warm_ns + int(seconds * 1e9)
    try:
        while (sent_ns := clock()) < end_ns:
            round_trip()
            if sent_ns >= warm_ns:
                taken.append(clock() - sent_ns)
    except OSError as error:
        if error.errno not in _TOO_LARGE:
            raise
    finally:
        gc.enable()
    return taken.tobytes()


def _seqpacket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _widen(connection: socket.socket) -> None:
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        connection.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)
