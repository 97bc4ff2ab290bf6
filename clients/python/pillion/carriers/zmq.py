"""The ZeroMQ carrier: one DEALER socket. Hot path."""

from __future__ import annotations

import math
from typing import ClassVar, Final

import zmq

from pillion.carriers.busy_poll import spin
from pillion.conversation import Frames
from pillion.errors import UnavailableError
from pillion.limits import (
    FRAME_BYTES_MAX,
    FRAMES_MAX,
    HEARTBEAT_MS,
    LINGER_MS,
    QUEUE_MESSAGES_MAX,
    RESEND_S,
    ZMQ_RECONNECT_MS,
    ZMQ_RECONNECT_MS_MAX,
)
from pillion_protocol.zmq_frames import NOBLOCK, receive_frames, send_frames

_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)


class ZmqCarrier:
    """Owns one DEALER socket, connected to `ipc://…` or `tcp://…`. For one thread at a time.

    `receive` polls for `busy_poll_us` before it sleeps. Raises `UnavailableError` for an impossible address.
    """

    passes_memory: ClassVar[bool] = False
    must_read_before_send: ClassVar[bool] = True

    def __init__(
        self, address: str, context: zmq.Context[zmq.Socket[bytes]] | None = None, busy_poll_us: int = 0
    ) -> None:
        self.address = address
        self.shares_clock = address.startswith("ipc://")
        self._busy_poll_ns = busy_poll_us * 1_000
        self.socket = (context or zmq.Context.instance()).socket(zmq.DEALER)
        socket = self.socket
        socket.setsockopt(zmq.LINGER, LINGER_MS)
        # Queue nothing for a daemon that is not there: it would arrive stale.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
        socket.setsockopt(zmq.SNDHWM, QUEUE_MESSAGES_MAX)
        socket.setsockopt(zmq.RCVHWM, QUEUE_MESSAGES_MAX)
        socket.setsockopt(zmq.RECONNECT_IVL, ZMQ_RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, ZMQ_RECONNECT_MS_MAX)
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HEARTBEAT_MS)
        self.set_wait(RESEND_S)
        try:
            socket.connect(address)
        except zmq.ZMQError as error:
            socket.close()
            raise UnavailableError(f"cannot connect to {address!r}: {error.strerror}") from None

    def expect(self, row_bytes: list[int]) -> None:
        """Does nothing, because each tensor is a frame of its own."""

    def set_wait(self, wait_s: float) -> None:
        """Sets how long `receive` waits, in seconds."""
        self.socket.setsockopt(zmq.RCVTIMEO, max(1, round(wait_s * 1_000)))

    def send(self, frames: Frames, wait_s: float) -> bool:
        """Sends a message. Returns False if there was no connection for `wait_s`."""
        if self.send_now(frames):
            return True
        return bool(self.socket.poll(math.ceil(wait_s * 1_000), zmq.POLLOUT)) and self.send_now(frames)

    def send_now(self, frames: Frames) -> bool:
        """Sends a message. Returns False if there is no connection now."""
        try:
            send_frames(self.socket, frames)
        except zmq.Again:
            return False
        return True

    def exchange(self, frames: Frames) -> Frames | None:
        """Sends a message and returns the next one, or None if none arrived or there was no connection."""
        return self.receive() if self.send_now(frames) else None

    def receive(self) -> Frames | None:
        """Returns the next message, or None if none arrived within the wait."""
        if self._busy_poll_ns:
            spin(lambda: self.socket.getsockopt(_EVENTS) & _POLLIN, self._busy_poll_ns)  # type: ignore[operator]
        try:
            return receive_frames(self.socket, 0, FRAMES_MAX)
        except zmq.Again:
            return None

    def receive_now(self) -> Frames | None:
        """Returns the next message if one is pending, else None."""
        try:
            return receive_frames(self.socket, NOBLOCK, FRAMES_MAX)
        except zmq.Again:
            return None

    def fileno(self) -> int:
        """Returns an edge-triggered descriptor: after every send and receive, call `receive_now` again."""
        return int(self.socket.getsockopt(zmq.FD))

    def readiness(self) -> tuple[bool, bool]:
        """Returns whether a message is pending, and whether one can be sent. Re-arms the descriptor."""
        events = int(self.socket.getsockopt(zmq.EVENTS))
        return bool(events & zmq.POLLIN), bool(events & zmq.POLLOUT)

    @property
    def is_closed(self) -> bool:
        return bool(self.socket.closed)

    def close(self) -> None:
        """Closes the socket. libzmq still sends queued messages for `LINGER_MS`."""
        self.socket.close()
