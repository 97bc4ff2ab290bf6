"""The interface between the serving loop and a carrier."""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum
from typing import ClassVar, Protocol

from pillion_protocol import RemoteProtocolError
from pillion_protocol.lane import Frame
from pilliond.linux.epoll import Events, Poller
from pilliond.transport.slots import SlotRegion


class Connection(Hashable, Protocol):
    """A peer with a connection of its own, which can be granted slots: the lane has these."""

    tensor_bytes_max: ClassVar[int]
    """Bytes of tensors that one reply can carry inline."""

    def expect(self, row_bytes: list[int]) -> None:
        """Says how the connection divides the tensors of a packet from now on: the bytes of a row of each observation."""
        ...


Peer = bytes | Connection
"""Where a message came from and its reply goes: a routing id of ZeroMQ, or a connection of the lane."""

Incoming = tuple[Peer, Frame | RemoteProtocolError, *tuple[Frame, ...]]
"""A received message: the peer, the head (or the error to answer with, where there is no whole head), the tensors.

The head and the tensors may be views of a buffer that the next `receive` overwrites; see `EpisodeGroup.keep`.
"""

MessagePoller = Poller[Incoming]

Reply = list[Peer | Frame | SlotRegion]
"""A message to send: the peer, the head, then the tensors; or, behind a `begun` of the lane, its `SlotRegion`."""


class Sent(Enum):
    """What happened to a reply."""

    OK = "ok"
    PEER_GONE = "peer_gone"
    PEER_FULL = "peer_full"


class Transport(Protocol):
    """A carrier. Turns bytes into messages, through the sources that it adds to a `Poller`, and back. Never waits."""

    peer_type: ClassVar[type]
    """The type of its peers: the loop finds the carrier of a reply by it."""

    is_edge_triggered: ClassVar[bool]
    """Whether `is_armed` can ever be False."""

    @property
    def is_armed(self) -> bool:
        """Whether the poller reports all that waits. If False, ask `pending` before the loop sleeps."""
        ...

    def bind(self, address: str) -> str:
        """Listens at `address`; returns the address with the port that it got. Raises `ListenError`."""
        ...

    def pending(self) -> Events:
        """The descriptors with waiting messages that the poller does not report."""
        ...

    def gone(self) -> list[Peer]:
        """The peers that left since the last call."""
        ...

    def send(self, message: Reply) -> Sent:
        """Sends a message as a whole, or not at all."""
        ...

    def close(self) -> None:
        """Closes every socket. What was sent may still leave for a moment."""
        ...
