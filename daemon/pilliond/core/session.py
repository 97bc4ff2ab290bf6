"""A session: one client's conversation with the daemon. Plain data; `Sessions` decides. Hot path."""

from __future__ import annotations

from pillion_protocol import Hello, Message
from pilliond.core.served_policy import ServedPolicy
from pilliond.transport.interface import Peer
from pilliond.transport.slots import SlotRegion
from pilliond.versions.loaded_version import Version


class Session:
    """One client's conversation. The id in its messages identifies it; `peer` is only where it was last heard."""

    __slots__ = (
        "acts_ended",
        "control_region",
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
        "policy",
        "share",
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
        policy: ServedPolicy,
        version: Version,
        is_evaluation: bool,
        now_ns: int,
    ) -> None:
        self.id = session_id
        """A secret: whoever knows it can act for the session."""
        self.number = number
        """The session's number since the serving process started. Operators see this instead of the id."""
        self.is_evaluation = is_evaluation
        """Whether it leases a version that is held for an evaluation; see `Router`."""
        self.acts_ended = 0
        """Acts of its episode groups that have ended."""
        self.peer = peer
        self.hello_key = (peer, hello.sequence)
        self.lock_step = hello.lock_step
        self.fallback = hello.fallback
        self.policy = policy
        """What its hello asked for: all its episodes are of this policy."""
        self.share = policy.share
        self.version = version
        """What its next episode leases, unless the router has another one for it; see `Router.lease`."""
        self.version_range = hello.version_range
        self.groups: set[int] = set()
        """The numbers of its episode groups; `Sessions` holds the groups themselves."""
        self.last_heard_ns = now_ns
        self.pinged_ns = now_ns
        self.step_key = b""
        """The first bytes of the last act that `Sessions` remembered for its short path."""
        self.control_sequence = 0
        self.control_request: Message | None = None
        self.control_reply: bytes = b""
        """The reply to `control_request`, kept for a repetition of it."""
        self.control_region: SlotRegion | None = None
        """The slots that travel with the reply, if it is a `begun` that grants some."""
