"""The lane carrier of a client: one Unix `SOCK_SEQPACKET` connection, no pyzmq, no event loop. Hot path."""

from __future__ import annotations

import select
import socket
import struct
import time
from typing import Final

from pillion.conversation import RESEND_S, Frames
from pillion.errors import InvalidObservationError
from pillion_protocol import RemoteProtocolError
from pillion_protocol.lane import PACKET_BYTES_MAX, pack, unpack

_RECONNECT_S: Final = 0.02
_SEND_BUFFER_BYTES: Final = 212_992
_TIMEVAL: Final = struct.Struct("ll")


class LaneCarrier:
    """Owns one connection to `lane:///PATH`, made anew where it is lost. For one thread at a time.

    `row_bytes` holds the bytes of a row of each output, from the welcome on.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.row_bytes: list[int] = []
        self._path = address.removeprefix("lane://")
        self._socket: socket.socket | None = None
        self._epoll: select.epoll | None = None
        self._is_closed = False
        self._connect_after_s = 0.0
        self._buffer = memoryview(bytearray(PACKET_BYTES_MAX + 1))
        self._wait_s = RESEND_S

    def set_wait(self, wait_s: float) -> None:
        """How long `receive` waits, in seconds."""
        self._wait_s = wait_s
        if self._socket is not None:
            self._apply_wait(self._socket)

    def send(self, frames: Frames, wait_s: float) -> bool:
        """Sends a message; False where there was no connection to send it on for `wait_s`."""
        give_up_s = time.monotonic() + wait_s
        while not self.send_now(frames):
            if time.monotonic() >= give_up_s:
                return False
            time.sleep(min(_RECONNECT_S, wait_s))
        return True

    def send_now(self, frames: Frames) -> bool:
        """Sends a message; False where there is no connection to send it on at this moment.

        Raises `InvalidObservationError` for a message that no packet of the lane can hold.
        """
        connection = self._socket or self._connect()
        if connection is None:
            return False
        packet = pack(bytes(frames[0]), frames[1:])
        if len(packet) > PACKET_BYTES_MAX:
            raise InvalidObservationError(
                f"expected at most {PACKET_BYTES_MAX} bytes in a message over the lane, came {len(packet)}: "
                "connect over ipc:// for observations of this size"
            )
        try:
            connection.send(packet, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            self._lose()
            return False
        return True

    def receive(self) -> Frames | None:
        """The next message, or None where none came within the wait, or the connection was lost."""
        return self._receive(0)

    def receive_now(self) -> Frames | None:
        """The next message, or None where none is there."""
        return self._receive(socket.MSG_DONTWAIT)

    def fileno(self) -> int:
        """What is readable while a message waits; the same one for every connection that this carrier makes."""
        if self._epoll is None:
            self._epoll = select.epoll()
            if self._socket is not None:
                self._epoll.register(self._socket.fileno(), select.EPOLLIN)
        return self._epoll.fileno()

    def readiness(self) -> tuple[bool, bool]:
        """Whether a message may wait, and whether one could be sent."""
        connection = self._socket or self._connect()
        return self._epoll is not None and bool(self._epoll.poll(0)), connection is not None

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def close(self) -> None:
        """Closes the connection; what was sent is still read over there."""
        self._is_closed = True
        self._lose()
        if self._epoll is not None:
            self._epoll.close()

    def _receive(self, flags: int) -> Frames | None:
        connection = self._socket
        if connection is None:
            return None
        try:
            size = connection.recv_into(self._buffer, 0, flags)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            size = 0
        if size == 0:
            self._lose()
            return None
        try:
            return unpack(self._buffer[:size], self.row_bytes)
        except RemoteProtocolError:
            return [b""]

    def _connect(self) -> socket.socket | None:
        now_s = time.monotonic()
        if self._is_closed or now_s < self._connect_after_s:
            return None
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(self._path)
        except OSError:
            connection.close()
            self._connect_after_s = now_s + _RECONNECT_S
            return None
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._apply_wait(connection)
        self._socket = connection
        if self._epoll is not None:
            self._epoll.register(connection.fileno(), select.EPOLLIN)
        return connection

    def _apply_wait(self, connection: socket.socket) -> None:
        # A time-out of the kernel's: Python's own would poll before every receive.
        seconds = max(0.001, self._wait_s)
        timeout = _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1e6))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)

    def _lose(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._connect_after_s = time.monotonic() + _RECONNECT_S
