"""The ZeroMQ carrier of a client: one DEALER. Hot path."""

from __future__ import annotations

import math
from typing import ClassVar, Final

import zmq

from pillion.carriers.busy_poll import spin
from pillion.conversation import RESEND_S, Frames
from pillion.errors import UnavailableError
from pillion_protocol.zmq_frames import NOBLOCK, receive_frames, send_frames

MESSAGE_BYTES_MAX: Final = 64 * 1024 * 1024
"""What a frame from the daemon may have."""

_FRAMES_MAX: Final = 66
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_RECONNECT_MS: Final = 20
_RECONNECT_MS_MAX: Final = 500
_HEARTBEAT_MS: Final = 5_000
_QUEUE_MESSAGES_MAX: Final = 1_000


class ZmqCarrier:
    """Owns one DEALER socket, connected to `ipc://…` or `tcp://…`. For one thread at a time."""

    passes_memory: ClassVar[bool] = False
    must_listen: ClassVar[bool] = True

    def __init__(
        self, address: str, context: zmq.Context[zmq.Socket[bytes]] | None = None, busy_poll_us: int = 0
    ) -> None:
        self.address = address
        self._busy_poll_ns = busy_poll_us * 1_000
        self.socket = (context or zmq.Context.instance()).socket(zmq.DEALER)
        socket = self.socket
        socket.setsockopt(zmq.LINGER, 200)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
        socket.setsockopt(zmq.SNDHWM, _QUEUE_MESSAGES_MAX)
        socket.setsockopt(zmq.RCVHWM, _QUEUE_MESSAGES_MAX)
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MS_MAX)
        socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * _HEARTBEAT_MS)
        socket.setsockopt(zmq.HANDSHAKE_IVL, _HEARTBEAT_MS)
        self.set_wait(RESEND_S)
        try:
            socket.connect(address)
        except zmq.ZMQError as error:
            socket.close()
            raise UnavailableError(f"cannot connect to {address!r}: {error.strerror}") from None

    def expect(self, row_bytes: list[int]) -> None:
        """Nothing to do: each tensor is a frame of its own."""

    def set_wait(self, wait_s: float) -> None:
        """How long `receive` waits, in seconds."""
        self.socket.setsockopt(zmq.RCVTIMEO, max(1, round(wait_s * 1_000)))

    def send(self, frames: Frames, wait_s: float) -> bool:
        """Sends a message; False where there was no connection to send it on for `wait_s`."""
        if self.send_now(frames):
            return True
        return bool(self.socket.poll(math.ceil(wait_s * 1_000), zmq.POLLOUT)) and self.send_now(frames)

    def send_now(self, frames: Frames) -> bool:
        """Sends a message; False where there is no connection to send it on at this moment."""
        try:
            send_frames(self.socket, frames)
        except zmq.Again:
            return False
        return True

    def exchange(self, frames: Frames) -> Frames | None:
        """Sends a message and gives the next one that comes, or None."""
        return self.receive() if self.send_now(frames) else None

    def receive(self) -> Frames | None:
        """The next message, or None where none came within the wait."""
        if self._busy_poll_ns:
            spin(lambda: self.socket.getsockopt(_EVENTS) & _POLLIN, self._busy_poll_ns)  # type: ignore[operator]
        try:
            return receive_frames(self.socket, 0, _FRAMES_MAX)
        except zmq.Again:
            return None

    def receive_now(self) -> Frames | None:
        """The next message, or None where none is there."""
        try:
            return receive_frames(self.socket, NOBLOCK, _FRAMES_MAX)
        except zmq.Again:
            return None

    def fileno(self) -> int:
        """Edge-triggered: after every send and receive look at `receive_now` again."""
        return int(self.socket.getsockopt(zmq.FD))

    def readiness(self) -> tuple[bool, bool]:
        """Whether a message waits, and whether one could be sent; re-arms the descriptor."""
        events = int(self.socket.getsockopt(zmq.EVENTS))
        return bool(events & zmq.POLLIN), bool(events & zmq.POLLOUT)

    @property
    def is_closed(self) -> bool:
        return bool(self.socket.closed)

    def close(self) -> None:
        """Closes the socket; what was sent may still leave for a moment."""
        self.socket.close()
