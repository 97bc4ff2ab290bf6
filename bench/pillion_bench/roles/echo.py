"""The roles of the baselines: ping-pong without a server behind it, over raw pyzmq and a raw Unix socket. Hot path."""

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

from pillion_bench.exchange import Exchange
from pillion_bench.limits import ECHO_WAIT_MS_MAX, ECHO_WARM_UP_S_MAX, SOCKET_BUFFER_BYTES
from pillion_bench.process.worker import Pipe

_STOP: Final = b"stop"
_TOO_LARGE: Final = frozenset({errno.EMSGSIZE, errno.ENOBUFS})


class EchoPlan(msgspec.Struct, frozen=True):
    """The path of the echo's socket, and the sizes of the messages."""

    path: str
    exchange: Exchange


class PingRequest(msgspec.Struct, frozen=True):
    """Ping for so many seconds."""

    seconds: float


class PingResult(msgspec.Struct, frozen=True):
    """Round trips in ns, as int64; empty if the socket cannot take messages of this size."""

    round_trip_ns: bytes


def serve_zmq(pipe: Pipe) -> None:
    """Answers every message on a ROUTER socket with the frames of an action, until the stop message."""
    plan = pipe.receive_plan(EchoPlan)
    reply = [bytes(size) for size in plan.exchange.action_bytes]
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 0)
        router.bind(f"ipc://{plan.path}")
        pipe.send("ready")
        while True:
            message = router.recv_multipart()
            if message[1] == _STOP:
                return
            router.send_multipart([message[0], *reply])


def ping_zmq(pipe: Pipe) -> None:
    """Sends the frames of an act on a DEALER socket and waits for each answer."""
    plan = pipe.receive_plan(EchoPlan)
    message = [bytes(size) for size in plan.exchange.act_bytes]
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 200)
        dealer.setsockopt(zmq.RCVTIMEO, ECHO_WAIT_MS_MAX)
        dealer.connect(f"ipc://{plan.path}")
        pipe.send("ready")

        def round_trip() -> None:
            dealer.send_multipart(message)
            dealer.recv_multipart()

        serve_pings(pipe, round_trip)
        dealer.send(_STOP)


def serve_lane(pipe: Pipe) -> None:
    """Answers every packet on a SOCK_SEQPACKET socket with one as long as an action, until the peer disconnects."""
    plan = pipe.receive_plan(EchoPlan)
    reply = bytes(sum(plan.exchange.action_bytes))
    buffer = bytearray(sum(plan.exchange.act_bytes))
    with _seqpacket() as listener:
        listener.bind(plan.path)
        listener.listen(1)
        pipe.send("ready")
        connection, _ = listener.accept()
        with connection:
            _set_buffers(connection)
            while connection.recv_into(buffer):
                connection.send(reply)


def ping_lane(pipe: Pipe) -> None:
    """Sends packets as long as an act and waits for each answer."""
    plan = pipe.receive_plan(EchoPlan)
    message = bytes(sum(plan.exchange.act_bytes))
    buffer = bytearray(sum(plan.exchange.action_bytes))
    with _seqpacket() as connection:
        _set_buffers(connection)
        connection.connect(plan.path)
        pipe.send("ready")

        def round_trip() -> None:
            connection.send(message)
            connection.recv_into(buffer)

        serve_pings(pipe, round_trip)


def serve_pings(pipe: Pipe, round_trip: Callable[[], None]) -> None:
    """Times round trips on each request, until the bench closes the pipe."""
    while (request := pipe.receive(PingRequest)) is not None:
        pipe.send(PingResult(_ping(request.seconds, round_trip)))


def _ping(seconds: float, round_trip: Callable[[], None]) -> bytes:
    clock = time.monotonic_ns
    taken = array("q")
    gc.collect()
    gc.disable()
    warm_ns = clock() + int(min(ECHO_WARM_UP_S_MAX, seconds / 4) * 1e9)
    end_ns = warm_ns + int(seconds * 1e9)
    try:
        while (sent_ns := clock()) < end_ns:
            round_trip()
            if sent_ns >= warm_ns:
                taken.append(clock() - sent_ns)
    except OSError as error:
        # A message that the socket cannot take has no baseline; the report then says null.
        if error.errno not in _TOO_LARGE:
            raise
    finally:
        gc.enable()
    return taken.tobytes()


def _seqpacket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _set_buffers(connection: socket.socket) -> None:
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        connection.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
