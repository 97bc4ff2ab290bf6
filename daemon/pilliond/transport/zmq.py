"""The ZeroMQ carrier: one ROUTER, bound to every `ipc://` and `tcp://` address. Hot path.

Its descriptor is edge-triggered: it becomes readable when the state *may* have changed, and any send or receive can
swallow that edge. So after each send or receive the loop calls `pending` before it sleeps.
"""

from __future__ import annotations

import errno
import os
import select
from typing import ClassVar, Final

import zmq

from pillion_protocol.zmq_frames import NOBLOCK, receive_frames, send_frames
from pilliond.errors import AddressInUseError, ListenError
from pilliond.limits import (
    HEARTBEAT_MS,
    LINGER_MS,
    MESSAGE_BYTES_HARD_MAX,
    RECEIVE_QUEUE_MESSAGES_MAX,
    SEND_QUEUE_MESSAGES_MAX,
    TENSOR_FRAMES_MAX,
)
from pilliond.linux.epoll import Events
from pilliond.transport.interface import Incoming, MessagePoller, Peer, Reply, Sent

_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_FRAMES_KEPT: Final = 2 + TENSOR_FRAMES_MAX
_OWNER_ONLY_UMASK: Final = 0o177
_NOTHING_PENDING: Final[Events] = []


class ZmqTransport:
    """Owns the context and the socket, and adds its descriptor to `poller`."""

    peer_type: ClassVar[type] = bytes
    bursts: ClassVar[bool] = True
    is_edge_triggered: ClassVar[bool] = True

    def __init__(self, poller: MessagePoller) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        socket = self._socket
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_BYTES_HARD_MAX)
        socket.setsockopt(zmq.LINGER, LINGER_MS)
        socket.setsockopt(zmq.SNDHWM, SEND_QUEUE_MESSAGES_MAX)
        socket.setsockopt(zmq.RCVHWM, RECEIVE_QUEUE_MESSAGES_MAX)
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HEARTBEAT_MS)
        descriptor = int(socket.getsockopt(zmq.FD))
        self._event: Events = [(descriptor, select.EPOLLIN)]
        self.is_armed = False
        self._poller = poller
        poller.add(descriptor, self)

    def bind(self, address: str) -> str:
        """Listens at `address`; returns the address with the port that it got.

        Only this user can open an ipc socket. Raises `AddressInUseError` or `ListenError`.
        """
        umask = os.umask(_OWNER_ONLY_UMASK)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            if error.errno == errno.EADDRINUSE:
                raise AddressInUseError(f"{address} is in use") from None
            raise ListenError(f"cannot listen at {address}: {error.strerror}") from None
        finally:
            os.umask(umask)
        return self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def pending(self) -> Events:
        """The descriptor, if a message waits; otherwise the descriptor is armed again."""
        if self._socket.getsockopt(_EVENTS) & _POLLIN:  # type: ignore[operator]
            return self._event
        self.is_armed = True
        return _NOTHING_PENDING

    def receive(self) -> Incoming | None:
        """The next message (peer, head, tensors), or None."""
        self.is_armed = False
        try:
            # The first frame from a ROUTER is the routing id of its peer, and a message always has one more. This list
            # is only indexed and sliced, as the tuple would be: making one of it would cost each act a copy.
            return receive_frames(self._socket, NOBLOCK, _FRAMES_KEPT)  # type: ignore[return-value]
        except zmq.Again:
            return None

    def gone(self) -> list[Peer]:
        """Nobody: a ROUTER learns that a peer left only when it sends to it."""
        return []

    def send(self, message: Reply) -> Sent:
        """Sends a message (peer, head, tensors) without waiting."""
        self.is_armed = False
        try:
            # Every element is a frame: the peer is a routing id, and slots exist on the lane only.
            send_frames(self._socket, message)  # type: ignore[arg-type]
        except zmq.Again:
            return Sent.PEER_FULL
        except zmq.ZMQError as error:
            if error.errno == errno.EHOSTUNREACH:
                return Sent.PEER_GONE
            raise
        return Sent.OK

    def close(self) -> None:
        """Sends what is queued, for at most `LINGER_MS`, and closes the socket."""
        self._poller.remove(self._event[0][0])
        self._socket.close()
        self._context.term()
