"""The summary of a session that the serving process sends to the control process."""

from __future__ import annotations

import msgspec


class SessionInfo(msgspec.Struct, frozen=True):
    """A session, without the id in its messages: whoever knows that can act for the session."""

    id: int
    """The session's number since the serving process started."""
    carrier: str
    """`lane` or `zmq`."""
    policy: str
    version: str
    """The version that its next episode leases, unless it falls into an arm."""
    is_evaluation: bool
    """Whether an evaluation hold keeps it on that version."""
    groups: int
    """Its episode groups."""
    rows: int
    """The rows of all its episode groups."""
    acts: int
    """Acts answered since it was opened."""
    lock_step: bool
    fallback: str
    idle_s: float
    """Seconds since its last message."""
