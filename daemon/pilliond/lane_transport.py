"""The lane: a Unix `SOCK_SEQPACKET` socket that the serving loop reads itself. Hot path.

All connections are in one epoll set, whose descriptor the loop watches: it is level-triggered, so nothing is ever
missed, and one call tells of every connection that has something.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from typing import ClassVar, Final

from pillion_protocol import ErrorCode, RemoteProtocolError
from pillion_protocol.lane import PACKET_BYTES_MAX, pack, unpack
from pilliond.errors import AddressInUseError, ListenError
from pilliond.limits import LANE_BACKLOG_MAX, LANE_SEND_BUFFER_BYTES
from pilliond.transport import Incoming, Reply, Sent

_OWNER_ONLY_UMASK: Final = 0o177
_CREDENTIALS: Final = struct.Struct("iII")
_EVENTS_MAX: Final = 256
_TOO_LARGE: Final = RemoteProtocolError(
    ErrorCode.TOO_LARGE, "the packet is too large for the lane", f"at most {PACKET_BYTES_MAX} bytes", "more"
)


class LaneConnection:
    """One client's connection; the peer of its messages. Owns its socket."""

    __slots__ = ("descriptor", "send", "socket")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.descriptor = connection.fileno()
        self.send = connection.send


class LaneTransport:
    """Owns the listening sockets, the connections and the epoll set.

    `row_bytes` holds the bytes of a row of each observation: how the rest of a packet is divided into tensors.
    """

    peer_type: ClassVar[type] = LaneConnection

    def __init__(self, row_bytes: list[int]) -> None:
        self._row_bytes = row_bytes
        self._epoll = select.epoll()
        self._listeners: dict[int, socket.socket] = {}
        self._connections: dict[int, LaneConnection] = {}
        self._ready: list[tuple[int, int]] = []
        self._gone: list[LaneConnection] = []
        # A byte more than a packet may have: what fills it is too large.
        self._buffer = memoryview(bytearray(PACKET_BYTES_MAX + 1))

    def bind(self, address: str) -> str:
        """Listens at `lane:///PATH`, for this user alone; raises `AddressInUseError` or `ListenError`."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        umask = os.umask(_OWNER_ONLY_UMASK)
        try:
            listener.bind(address.removeprefix("lane://"))
            listener.listen(LANE_BACKLOG_MAX)
        except OSError as error:
            listener.close()
            kind = AddressInUseError if error.errno == 98 else ListenError
            raise kind(f"cannot listen at {address}: {error.strerror}") from None
        finally:
            os.umask(umask)
        self._listeners[listener.fileno()] = listener
        self._epoll.register(listener.fileno(), select.EPOLLIN)
        return address

    def fileno(self) -> int:
        return self._epoll.fileno()

    def readable(self) -> bool:
        return bool(self._ready)

    def receive(self) -> Incoming | None:
        while True:
            if not self._ready:
                self._ready = self._epoll.poll(0, _EVENTS_MAX)
                if not self._ready:
                    return None
            descriptor, _ = self._ready.pop()
            connection = self._connections.get(descriptor)
            if connection is None:
                self._accept(descriptor)
                continue
            message = self._read(connection)
            if message is not None:
                return message

    def gone(self) -> list[LaneConnection]:
        left = self._gone
        if left:
            self._gone = []
        return left

    def send(self, message: Reply) -> Sent:
        packet = pack(message[1], message[2:])
        try:
            message[0].send(packet, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._drop(message[0])
            return Sent.PEER_FULL
        except OSError:
            self._drop(message[0])
            return Sent.PEER_GONE
        return Sent.OK

    def close(self) -> None:
        """Closes everything; what was sent is still read by whoever reads."""
        for listener in self._listeners.values():
            listener.close()
        for connection in list(self._connections.values()):
            connection.socket.close()
        self._epoll.close()

    def _read(self, connection: LaneConnection) -> Incoming | None:
        buffer = self._buffer
        try:
            size = connection.socket.recv_into(buffer, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            size = 0
        if size == 0:
            self._drop(connection)
            return None
        if size > PACKET_BYTES_MAX:
            return [connection, _TOO_LARGE]
        try:
            return [connection, *unpack(buffer[:size], self._row_bytes)]
        except RemoteProtocolError as error:
            return [connection, error]

    def _accept(self, descriptor: int) -> None:
        try:
            accepted, _ = self._listeners[descriptor].accept()
        except OSError:
            # The peer went before it was let in, or there is no descriptor left for it: its own connect fails.
            return
        if _uid_of(accepted) not in (os.getuid(), 0):
            accepted.close()
            return
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LANE_SEND_BUFFER_BYTES)
        connection = LaneConnection(accepted)
        self._connections[connection.descriptor] = connection
        self._epoll.register(connection.descriptor, select.EPOLLIN)

    def _drop(self, connection: LaneConnection) -> None:
        if self._connections.pop(connection.descriptor, None) is not None:
            connection.socket.close()
            self._gone.append(connection)


def _uid_of(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(credentials)[1]
    return uid
