"""The lane: a Unix `SOCK_SEQPACKET` socket that the serving loop reads directly. Hot path."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from typing import ClassVar, Final, cast

from pillion_protocol import Error, ErrorCode, RemoteProtocolError, encode
from pillion_protocol.lane import Frame, pack, unpack
from pillion_protocol.limits import PACKET_BYTES_MAX, TENSOR_BYTES_MAX
from pillion_protocol.packed import Packed
from pillion_protocol.steps import ACT_STEP_BYTES, TIMED_ACT_STEP_BYTES
from pilliond.errors import AddressInUseError, ListenError
from pilliond.ipc.metrics_page import MetricsPage
from pilliond.limits import LANE_BACKLOG_MAX, LANE_SEND_BUFFER_BYTES
from pilliond.linux.epoll import Events
from pilliond.linux.peer_credentials import is_allowed
from pilliond.transport.interface import Incoming, MessagePoller, Peer, Reply, Sent
from pilliond.transport.slots import SlotRegion

_OWNER_ONLY_UMASK: Final = 0o177
_GROUP_TOO_MODE: Final = 0o660
_DESCRIPTOR: Final = struct.Struct("i")
_DO_NOT_WAIT: Final = socket.MSG_DONTWAIT
_SEND_FLAGS: Final = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
_NOTHING_PENDING: Final[Events] = []
_OK: Final = Sent.OK
_ACT_STEPS_BYTES: Final = (ACT_STEP_BYTES, TIMED_ACT_STEP_BYTES)
_TOO_LARGE: Final = RemoteProtocolError(
    ErrorCode.TOO_LARGE, "the packet is too large for the lane", f"at most {PACKET_BYTES_MAX} bytes", "more"
)
_NOT_ALLOWED: Final = pack(
    encode(
        Error(
            0, 0, 0, ErrorCode.NOT_ALLOWED, "this daemon serves only its own user, root and the group in its settings"
        )
    ),
    (),
)


_NO_DESCRIPTOR_LEFT: Final = pack(
    encode(Error(0, 0, 0, ErrorCode.OVERLOADED, "this daemon has no descriptor left for another connection")), ()
)
_OUT_OF_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE)


class LaneConnection:
    """One client's connection, and the peer of its messages. Owns its socket."""

    __slots__ = (
        "_lane", "_receive_into", "_usual", "_usual_bytes", "_usual_head_bytes", "descriptor", "row_bytes", "send",
        "socket",
    )  # fmt: skip

    bursts: ClassVar[bool] = False
    tensor_bytes_max: ClassVar[int] = TENSOR_BYTES_MAX
    """As `Connection.tensor_bytes_max`."""

    def __init__(self, connection: socket.socket, lane: LaneTransport) -> None:
        self._lane = lane
        self.expect(lane.row_bytes)
        self._receive_into = connection.recv_into
        self.socket = connection
        self.descriptor = connection.fileno()
        self.send = connection.send

    def expect(self, row_bytes: list[int]) -> None:
        """As `Connection.expect`."""
        self.row_bytes = row_bytes
        self._usual: Incoming | None = None
        """The frames of an act in a packet of `_usual_bytes`, with a head of `_usual_head_bytes`. They are cut once: each
        act of a group has the same form."""
        self._usual_bytes = 0
        self._usual_head_bytes = 0

    def receive(self) -> Incoming | None:
        lane = self._lane
        try:
            # There is no buffer for descriptors, so the kernel closes any that a client sends.
            size = self._receive_into(lane.buffer, 0, _DO_NOT_WAIT)
        except BlockingIOError:
            return None
        except OSError:
            size = 0
        if size == 0:
            lane.drop(self)
            return None
        buffer = lane.buffer
        if buffer[0] == self._usual_head_bytes and not buffer[1] and size == self._usual_bytes:
            return self._usual
        if size > PACKET_BYTES_MAX:
            return (self, _TOO_LARGE)
        try:
            frames = unpack(buffer[:size], self.row_bytes)
        except RemoteProtocolError as error:
            return (self, error)
        message: Incoming = (self, frames[0], *frames[1:])
        if len(frames[0]) in _ACT_STEPS_BYTES:
            self._usual, self._usual_bytes, self._usual_head_bytes = message, size, buffer[0]
        return message


_LaneReply = tuple[LaneConnection, Frame, *tuple[Frame | SlotRegion, ...]]


class LaneListener:
    """A listening socket, which yields connections instead of messages. Owns the socket."""

    bursts: ClassVar[bool] = False

    def __init__(self, listener: socket.socket, lane: LaneTransport) -> None:
        self.socket = listener
        self._lane = lane

    def receive(self) -> None:
        try:
            accepted, _ = self.socket.accept()
        except OSError as error:
            # Any other error means that the peer left before it was accepted.
            if error.errno in _OUT_OF_DESCRIPTORS:
                self._lane.reject(self.socket)
            return
        self._lane.welcome(accepted)


class LaneTransport:
    """Owns the listening sockets and the connections, and adds both to `poller`.

    `row_bytes` holds the bytes of a row of each observation. A connection divides its packets by them until a hello of
    its own gets another spec. This user, root, and members of the group with the id `group` may connect.
    """

    peer_type: ClassVar[type] = LaneConnection
    is_edge_triggered: ClassVar[bool] = False
    is_armed: ClassVar[bool] = True

    def __init__(
        self, row_bytes: list[int], poller: MessagePoller, page: MetricsPage, group: int | None = None
    ) -> None:
        self.row_bytes = row_bytes
        # One byte more than a packet may have: a packet that fills the buffer is too large.
        self.buffer = memoryview(bytearray(PACKET_BYTES_MAX + 1))
        self._poller = poller
        self._page = page
        self._group = group
        self._listeners: list[LaneListener] = []
        self._connections: set[LaneConnection] = set()
        self._gone: list[Peer] = []
        self._spare = _take_spare()

    def __len__(self) -> int:
        return len(self._connections)

    def bind(self, address: str) -> str:
        """Listens at `lane:///PATH`, for this user and the group only; raises `AddressInUseError` or `ListenError`."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        umask = os.umask(_OWNER_ONLY_UMASK)
        try:
            listener.bind(address.removeprefix("lane://"))
            listener.listen(LANE_BACKLOG_MAX)
            if self._group is not None:
                os.chown(listener.getsockname(), -1, self._group)
                os.chmod(listener.getsockname(), _GROUP_TOO_MODE)
        except OSError as error:
            listener.close()
            kind = AddressInUseError if error.errno == errno.EADDRINUSE else ListenError
            raise kind(f"cannot listen at {address}: {error.strerror}") from None
        finally:
            os.umask(umask)
        source = LaneListener(listener, self)
        self._listeners.append(source)
        self._poller.add(listener.fileno(), source)
        return address

    def pending(self) -> Events:
        """Nothing: the poller reports every connection that has a message."""
        return _NOTHING_PENDING

    def gone(self) -> list[Peer]:
        left = self._gone
        if left:
            self._gone = []
        return left

    def send(self, message: Reply) -> Sent:
        if isinstance(message, Packed):
            try:
                message[0].send(message.packet, _SEND_FLAGS)
            except OSError as error:
                return self._failed(message[0], error)
            return _OK
        # The loop sends a reply by the carrier of its peer's type.
        connection, head, *tensors = cast("_LaneReply", message)
        if tensors and isinstance(tensors[0], SlotRegion):
            return self._pass(connection, pack(head, ()), tensors[0])
        try:
            connection.send(pack(head, cast("list[Frame]", tensors)), _SEND_FLAGS)
        except OSError as error:
            return self._failed(connection, error)
        return _OK

    def _pass(self, connection: LaneConnection, packet: Frame, region: SlotRegion) -> Sent:
        """Sends a packet together with the shared memory of the slots that it grants."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _DESCRIPTOR.pack(region.descriptor))]
        try:
            connection.socket.sendmsg([packet], rights, _SEND_FLAGS)
        except OSError as error:
            return self._failed(connection, error)
        return _OK

    def _failed(self, connection: LaneConnection, error: OSError) -> Sent:
        self.drop(connection)
        return Sent.PEER_FULL if isinstance(error, BlockingIOError) else Sent.PEER_GONE

    def close(self) -> None:
        """Closes everything. A peer can still read what was sent."""
        for listener in self._listeners:
            self._poller.remove(listener.socket.fileno())
            listener.socket.close()
        for connection in list(self._connections):
            self.drop(connection)
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    def welcome(self, accepted: socket.socket) -> None:
        """Accepts a peer, or refuses it with the reason."""
        if not is_allowed(accepted, self._group):
            self._refuse(accepted, ErrorCode.NOT_ALLOWED, _NOT_ALLOWED)
            return
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LANE_SEND_BUFFER_BYTES)
        connection = LaneConnection(accepted, self)
        self._connections.add(connection)
        self._poller.add(connection.descriptor, connection)

    def reject(self, listener: socket.socket) -> None:
        """Refuses the next peer, because no descriptor is left for it, over the spare one that is kept for this.

        Otherwise the peer would stay in the backlog, and the poller would report it without end.
        """
        if self._spare >= 0:
            os.close(self._spare)
        # Another process may have taken the descriptor first; then the next peer tries again.
        with contextlib.suppress(OSError):
            self._refuse(listener.accept()[0], ErrorCode.OVERLOADED, _NO_DESCRIPTOR_LEFT)
        self._spare = _take_spare()

    def _refuse(self, accepted: socket.socket, code: ErrorCode, packet: bytes) -> None:
        self._page.refusal(code)
        # The peer may have left without waiting for the reason.
        with contextlib.suppress(OSError):
            accepted.send(packet, _SEND_FLAGS)
        accepted.close()

    def drop(self, connection: LaneConnection) -> None:
        """Closes a connection; harmless to repeat."""
        if connection in self._connections:
            self._connections.remove(connection)
            self._poller.remove(connection.descriptor)
            connection.socket.close()
            self._gone.append(connection)


def _take_spare() -> int:
    """A descriptor to give up when no other is left; -1 if there is none even now."""
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
