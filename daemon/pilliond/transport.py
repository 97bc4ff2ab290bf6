"""What the serving loop asks of a carrier."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, ClassVar, Protocol

Peer = Any
"""Where a message came from and its answer goes: ZeroMQ's routing id, or a connection of the lane. Hashable."""

Incoming = list[Any]
"""A message that came: the peer, the head (or the `RemoteProtocolError` for what has none), the tensors."""

Reply = list[Any]
"""A message to send: the peer, the head, the tensors."""


class Sent(Enum):
    """What became of a reply."""

    OK = "ok"
    PEER_GONE = "peer_gone"
    PEER_FULL = "peer_full"


class Transport(Protocol):
    """A carrier: bytes to messages and back. Never waits."""

    peer_type: ClassVar[type]
    """The type of its peers, by which a reply finds its carrier."""

    def bind(self, address: str) -> str:
        """Listens at `address`, gives the address that was taken; raises `ListenError`."""

    def fileno(self) -> int:
        """What becomes readable when `receive` may have something."""

    def readable(self) -> bool:
        """Whether a message waits; to be asked before the loop goes to sleep."""

    def receive(self) -> Incoming | None:
        """The next message, or None."""

    def gone(self) -> Sequence[Peer]:
        """The peers that left since it was last asked, where the carrier can tell."""

    def send(self, message: Reply) -> Sent:
        """Sends a message."""

    def close(self) -> None:
        """Lets go of every socket."""
