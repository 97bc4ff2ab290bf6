"""What the serving loop asks of a carrier."""

from __future__ import annotations

from enum import Enum
from typing import Any, ClassVar, Protocol

from pilliond.linux.epoll import Events

Peer = Any
"""Where a message came from and its answer goes: ZeroMQ's routing id, or a connection of the lane. Hashable."""

Incoming = list[Any]
"""A message that came: the peer, the head (or the `RemoteProtocolError` for what has none), the tensors.

The head and the tensors may be views of a buffer that the next `receive` overwrites; see `EpisodeGroup.keep`.
"""

Reply = list[Any]
"""A message to send: the peer, the head, then the tensors; or behind a `begun` of the lane its `SlotRegion`."""


class Sent(Enum):
    """What became of a reply."""

    OK = "ok"
    PEER_GONE = "peer_gone"
    PEER_FULL = "peer_full"


class Transport(Protocol):
    """A carrier: messages to bytes, and, through the sources that it adds to a `Poller`, back. Never waits."""

    peer_type: ClassVar[type]
    """The type of its peers, by which a reply finds its carrier."""

    is_edge_triggered: ClassVar[bool]
    """Whether it is ever not armed."""

    @property
    def is_armed(self) -> bool:
        """Whether the poller tells of all that waits; False: `pending` must be asked before the loop sleeps."""
        ...

    def bind(self, address: str) -> str:
        """Listens at `address`, gives the address that was taken; raises `ListenError`."""
        ...

    def pending(self) -> Events:
        """Its descriptors behind which something waits that the poller does not tell of."""
        ...

    def gone(self) -> list[Peer]:
        """The peers that left since the last call."""
        ...

    def send(self, message: Reply) -> Sent:
        """Sends a message, whole or not at all."""
        ...

    def close(self) -> None:
        """Closes every socket; what was sent may still leave for a moment."""
        ...
