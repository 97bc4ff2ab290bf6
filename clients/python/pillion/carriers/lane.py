"""The lane carrier: one Unix `SOCK_SEQPACKET` connection, without pyzmq and without an event loop. Hot path."""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import time
from typing import ClassVar, Final

from pillion.carriers.busy_poll import spin
from pillion.conversation import Frames
from pillion.errors import InvalidObservationError, RefusedError
from pillion.limits import LANE_RECONNECT_S, LANE_SEND_BUFFER_BYTES, RESEND_S
from pillion_protocol import ErrorCode, MessageType, RemoteProtocolError
from pillion_protocol.lane import pack, unpack
from pillion_protocol.limits import PACKET_BYTES_MAX
from pillion_protocol.steps import ActStep

_DO_NOT_WAIT: Final = socket.MSG_DONTWAIT
_SEND_FLAGS: Final = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
_TIMEVAL: Final = struct.Struct("ll")
_BEGUN: Final = bytes([MessageType.BEGUN])
_BEGIN: Final = int(MessageType.BEGIN)
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(struct.calcsize("i"))


class LaneCarrier:
    """Owns one connection to `lane:///PATH` and reconnects when it is lost. For one thread at a time.

    `receive` polls for `busy_poll_us` before it sleeps.
    """

    passes_memory: ClassVar[bool] = True
    must_read_before_send: ClassVar[bool] = False

    def __init__(self, address: str, busy_poll_us: int = 0) -> None:
        self.address = address
        self.shares_clock = True
        self._busy_poll_ns = busy_poll_us * 1_000
        self._poll = select.poll()
        self._awaits_memory = False
        self._row_bytes: list[int] = []
        self._path = address.removeprefix("lane://")
        self._socket: socket.socket | None = None
        self._epoll: select.epoll | None = None
        self._is_closed = False
        self._connect_after_s = 0.0
        self._final_message: Frames | None = None
        self._buffer = memoryview(bytearray(PACKET_BYTES_MAX + 1))
        self._wait_s = RESEND_S
        self._form = (0, 0, 0)
        self._cut: list[memoryview] = []
        """The frames of a packet of `_form` (its size and its first two bytes), as views of the buffer."""

    def expect(self, row_bytes: list[int]) -> None:
        """Sets the bytes of one row of each output, by which packets are divided from now on."""
        self._row_bytes = row_bytes
        self._form = (0, 0, 0)

    def set_wait(self, wait_s: float) -> None:
        """Sets how long `receive` waits, in seconds."""
        self._wait_s = wait_s
        if self._socket is not None:
            self._apply_wait(self._socket)

    def send(self, frames: Frames, wait_s: float) -> bool:
        """Sends a message. Returns False if there was no connection for `wait_s`."""
        if self.send_now(frames):
            return True
        give_up_s = time.monotonic() + wait_s
        while not self.send_now(frames):
            if time.monotonic() >= give_up_s:
                return False
            time.sleep(min(LANE_RECONNECT_S, wait_s))
        return True

    def send_now(self, frames: Frames) -> bool:
        """Sends a message. Returns False if there is no connection now.

        Raises `InvalidObservationError` if the message is too large for a packet of the lane, and `RefusedError` if this
        user may not connect.
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
                f"expected a message of at most {PACKET_BYTES_MAX} bytes on the lane without a slot, got {len(packet)}; "
                "connect over ipc:// for observations of this size"
            )
        try:
            connection.send(packet, _SEND_FLAGS)
        except BlockingIOError:
            return False
        except OSError:
            self._drain_closed_connection()
            return False
        return True

    def exchange(self, frames: Frames) -> Frames | None:
        """Sends a message and returns the next one, or None. For an act it takes the fewest possible steps."""
        connection = self._socket
        if type(frames) is not ActStep or connection is None or len(frames.packet) > PACKET_BYTES_MAX:
            return self.receive() if self.send_now(frames) else self.receive_now()
        try:
            connection.send(frames.packet, _SEND_FLAGS)
        except OSError:
            # The daemon closed the connection; its final message may still be unread.
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
        """Returns the next message, or None if none arrived within the wait or the connection was lost."""
        if self._busy_poll_ns:
            spin(self._is_readable, self._busy_poll_ns)
        return self._receive(0)

    def receive_now(self) -> Frames | None:
        """Returns the next message if one is pending, else None."""
        return self._receive(_DO_NOT_WAIT)

    def fileno(self) -> int:
        """Returns a descriptor that is readable while a message is pending. It stays the same across reconnects."""
        if self._epoll is None:
            self._epoll = select.epoll()
            if self._socket is not None:
                self._epoll.register(self._socket.fileno(), select.EPOLLIN)
        return self._epoll.fileno()

    def readiness(self) -> tuple[bool, bool]:
        """Returns whether a message may be pending, and whether one can be sent."""
        connection = self._socket or self._connect()
        return self._epoll is not None and bool(self._epoll.poll(0)), connection is not None

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def close(self) -> None:
        """Closes the connection. The daemon still reads what was sent."""
        self._is_closed = True
        self._lose()
        if self._epoll is not None:
            self._epoll.close()

    def _receive(self, flags: int) -> Frames | None:
        connection = self._socket
        if connection is None:
            final, self._final_message = self._final_message, None
            return final
        descriptors: list[int] = []
        try:
            if self._awaits_memory:
                size = self._receive_with_memory(connection, flags, descriptors)
            else:
                size = connection.recv_into(self._buffer, 0, flags)
        except (BlockingIOError, InterruptedError):
            return None
        except ConnectionResetError:
            # The kernel reports this once if the daemon closed before it had read everything. Its messages are still unread.
            return self._receive(_DO_NOT_WAIT)
        except OSError:
            size = 0
        frames = self._frames(size)
        if self._awaits_memory and frames is not None:
            self._take_memory(frames, descriptors)
        return frames

    def _drain_closed_connection(self) -> None:
        """Reads what the daemon sent before it closed the connection, and keeps the final message for `_receive`."""
        final: Frames | None = None
        while (frames := self._receive(_DO_NOT_WAIT)) is not None:
            final = [bytes(frame) for frame in frames]
        self._lose()
        self._final_message = final

    def _frames(self, size: int) -> Frames | None:
        """Returns the frames of the packet of `size` bytes in the buffer, or None if the connection is lost."""
        buffer = self._buffer
        if size == 0:
            self._lose()
            return None
        form = (size, buffer[0], buffer[1])
        if form != self._form:
            # Cut only when the form changes: nearly every packet is an action of the same form as the last one.
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
        """Appends a view of the passed memory to a `begun`. The view keeps the memory; every descriptor is closed."""
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
            self._connect_after_s = now_s + LANE_RECONNECT_S
            return None
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LANE_SEND_BUFFER_BYTES)
        self._apply_wait(connection)
        self._socket = connection
        self._final_message = None
        self._poll.register(connection, select.POLLIN)
        self._awaits_memory = False
        if self._epoll is not None:
            self._epoll.register(connection.fileno(), select.EPOLLIN)
        return connection

    def _apply_wait(self, connection: socket.socket) -> None:
        # The kernel's time-out, because Python's own would poll before every receive.
        seconds = max(0.001, self._wait_s)
        timeout = _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1e6))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)

    def _lose(self) -> None:
        if self._socket is not None:
            self._poll.unregister(self._socket)
            self._socket.close()
            self._socket = None
        self._connect_after_s = time.monotonic() + LANE_RECONNECT_S
