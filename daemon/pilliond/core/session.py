"""A session: one client's conversation with the daemon. Plain data; `Sessions` decides. Hot path."""

from __future__ import annotations

from pillion_protocol import Hello, Message
from pilliond.transport.interface import Peer
from pilliond.transport.slots import SlotRegion
from pilliond.versions.loaded_version import Version


class Session:
    """One client's conversation. Its identity is the id in the messages; `peer` is only where it was last heard."""

    __slots__ = (
        "acts_ended",
        "control_area",
        "control_reply",
        "control_request",
        "control_sequence",
        "fallback",
        "groups",
        "hello_key",
        "id",
        "is_evaluation",
        "last_heard_ns",
        "lock_step",
        "number",
        "peer",
        "pinged_ns",
        "step_key",
        "version",
        "version_range",
    )

    def __init__(
        self,
        session_id: int,
        number: int,
        peer: Peer,
        hello: Hello,
        version: Version,
        is_evaluation: bool,
        now_ns: int,
    ) -> None:
        self.id = session_id
        self.number = number
        """How many sessions of this serving process were opened before, and this one: what others may know of it."""
        self.is_evaluation = is_evaluation
        """Whether it leases a version that is held for an evaluation; see `Router`."""
        self.acts_ended = 0
        """Acts of its handles that have ended."""
        self.peer = peer
        self.hello_key = (peer, hello.sequence)
        self.lock_step = hello.lock_step
        self.fallback = hello.fallback
        self.version = version
        """What its next episode leases, unless it can go over to another one; see `Router.lease`."""
        self.version_range = hello.version_range
        self.groups: set[int] = set()
        """The numbers of its handles; `Sessions` holds the handles themselves."""
        self.last_heard_ns = now_ns
        self.pinged_ns = now_ns
        self.step_key = b""
        self.control_sequence = 0
        self.control_request: Message | None = None
        self.control_reply: bytes = b""
        self.control_area: SlotRegion | None = None
        """The slots that travel with the reply, if it is a `begun` that has some."""
