"""The lane carrier of a client: one Unix `SOCK_SEQPACKET` connection, no pyzmq, no event loop. Hot path."""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import time
from typing import ClassVar, Final

from pillion.carriers.busy_poll import spin
from pillion.conversation import RESEND_S, Frames
from pillion.errors import InvalidObservationError, RefusedError
from pillion_protocol import ErrorCode, MessageType, RemoteProtocolError
from pillion_protocol.lane import PACKET_BYTES_MAX, pack, unpack
from pillion_protocol.steps import ActStep

_DO_NOT_WAIT: Final = socket.MSG_DONTWAIT
_SEND_FLAGS: Final = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
_RECONNECT_S: Final = 0.02
_SEND_BUFFER_BYTES: Final = 212_992
_TIMEVAL: Final = struct.Struct("ll")
_BEGUN: Final = bytes([MessageType.BEGUN])
_BEGIN: Final = int(MessageType.BEGIN)
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(struct.calcsize("i"))


class LaneCarrier:
    """Owns one connection to `lane:///PATH`, made anew where it is lost. For one thread at a time.

    `receive` looks for `busy_poll_us` before it sleeps.
    """

    passes_memory: ClassVar[bool] = True
    must_listen: ClassVar[bool] = False

    def __init__(self, address: str, busy_poll_us: int = 0) -> None:
        self.address = address
        self._busy_poll_ns = busy_poll_us * 1_000
        self._poll = select.poll()
        self._awaits_memory = False
        self._row_bytes: list[int] = []
        self._path = address.removeprefix("lane://")
        self._socket: socket.socket | None = None
        self._epoll: select.epoll | None = None
        self._is_closed = False
        self._connect_after_s = 0.0
        self._last_words: Frames | None = None
        self._buffer = memoryview(bytearray(PACKET_BYTES_MAX + 1))
        self._wait_s = RESEND_S
        self._form = (0, 0, 0)
        self._cut: list[memoryview] = []
        """The frames of a packet of `_form` (its bytes, and the two that begin it), as views of the buffer."""

    def expect(self, row_bytes: list[int]) -> None:
        """Divides what follows a head so from now on: the bytes of a row of each output."""
        self._row_bytes = row_bytes
        self._form = (0, 0, 0)

    def set_wait(self, wait_s: float) -> None:
        """How long `receive` waits, in seconds."""
        self._wait_s = wait_s
        if self._socket is not None:
            self._apply_wait(self._socket)

    def send(self, frames: Frames, wait_s: float) -> bool:
        """Sends a message; False where there was no connection to send it on for `wait_s`."""
        if self.send_now(frames):
            return True
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
        if type(frames) is ActStep:
            packet: bytes | bytearray | memoryview = frames.packet
        else:
            head, *tensors = frames
            packet = pack(head, tensors)
            if head[0] == _BEGIN:
                self._awaits_memory = True
        if len(packet) > PACKET_BYTES_MAX:
            raise InvalidObservationError(
                f"expected at most {PACKET_BYTES_MAX} bytes in a message over the lane that has no slot for it, "
                f"got {len(packet)}: connect over ipc:// for observations of this size"
            )
        try:
            connection.send(packet, _SEND_FLAGS)
        except BlockingIOError:
            return False
        except OSError:
            self._keep_last_words()
            return False
        return True

    def exchange(self, frames: Frames) -> Frames | None:
        """Sends a message and gives the next one that comes, or None: for an act, in as few steps as can be."""
        connection = self._socket
        if type(frames) is not ActStep or connection is None or len(frames.packet) > PACKET_BYTES_MAX:
            return self.receive() if self.send_now(frames) else self.receive_now()
        try:
            connection.send(frames.packet, _SEND_FLAGS)
        except OSError:
            # What the daemon said last may still lie there.
            return self._receive(_DO_NOT_WAIT)
        try:
            if self._busy_poll_ns:
                spin(self._is_readable, self._busy_poll_ns)
            size = connection.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return None
        except ConnectionResetError:
            return self._receive(_DO_NOT_WAIT)
        except OSError:
            size = 0
        return self._frames(size)

    def receive(self) -> Frames | None:
        """The next message, or None where none came within the wait, or the connection was lost."""
        if self._busy_poll_ns:
            spin(self._is_readable, self._busy_poll_ns)
        return self._receive(0)

    def receive_now(self) -> Frames | None:
        """The next message, or None where none is there."""
        return self._receive(_DO_NOT_WAIT)

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
            last_words, self._last_words = self._last_words, None
            return last_words
        descriptors: list[int] = []
        try:
            if self._awaits_memory:
                size = self._receive_with_memory(connection, flags, descriptors)
            else:
                size = connection.recv_into(self._buffer, 0, flags)
        except (BlockingIOError, InterruptedError):
            return None
        except ConnectionResetError:
            # Said once, where the daemon closed before it had read everything: its last words still lie there.
            return self._receive(_DO_NOT_WAIT)
        except OSError:
            size = 0
        frames = self._frames(size)
        if self._awaits_memory and frames is not None:
            self._take_memory(frames, descriptors)
        return frames

    def _keep_last_words(self) -> None:
        """Reads what the daemon said before it closed the connection, which is lost then; keeps the last message."""
        last_words: Frames | None = None
        while (frames := self._receive(_DO_NOT_WAIT)) is not None:
            last_words = [bytes(frame) for frame in frames]
        self._lose()
        self._last_words = last_words

    def _frames(self, size: int) -> Frames | None:
        """The frames of the packet of `size` bytes that was read, or None where the connection is lost."""
        buffer = self._buffer
        if size == 0:
            self._lose()
            return None
        form = (size, buffer[0], buffer[1])
        if form != self._form:
            # Cut once: nearly every packet is an action of the form that the last one had.
            try:
                self._cut = unpack(buffer[:size], self._row_bytes)
            except RemoteProtocolError:
                return [b""]
            self._form = form
        return [*map(memoryview.tobytes, self._cut)]

    def _receive_with_memory(self, connection: socket.socket, flags: int, descriptors: list[int]) -> int:
        size, ancillary, _, _ = connection.recvmsg_into([self._buffer], _ANCILLARY_BYTES, flags)
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors += memoryview(data).cast("i")
        return size

    def _take_memory(self, frames: Frames, descriptors: list[int]) -> None:
        """Puts a view of the passed memory behind the head of a `begun`. The view keeps it; no descriptor is kept."""
        if frames[0][:1] == _BEGUN:
            self._awaits_memory = False
            frames += [memoryview(mmap.mmap(descriptor, 0)) for descriptor in descriptors[:1]]
        for descriptor in descriptors:
            os.close(descriptor)

    def _is_readable(self) -> bool:
        return bool(self._poll.poll(0))

    def _connect(self) -> socket.socket | None:
        now_s = time.monotonic()
        if self._is_closed or now_s < self._connect_after_s:
            return None
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(self._path)
        except PermissionError:
            connection.close()
            raise RefusedError(
                ErrorCode.NOT_ALLOWED, f"this user may not open {self._path}", "its owner, or a member of its group"
            ) from None
        except OSError:
            connection.close()
            self._connect_after_s = now_s + _RECONNECT_S
            return None
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._apply_wait(connection)
        self._socket = connection
        self._last_words = None
        self._poll.register(connection, select.POLLIN)
        self._awaits_memory = False
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
            self._poll.unregister(self._socket)
            self._socket.close()
            self._socket = None
        self._connect_after_s = time.monotonic() + _RECONNECT_S
