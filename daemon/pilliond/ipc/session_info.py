"""What the serving process tells the control process of a session."""

from __future__ import annotations

import msgspec


class SessionInfo(msgspec.Struct, frozen=True):
    """A session, without what its client sent, and without the number that its messages carry: who has that is it."""

    id: int
    """How many sessions of the serving process were opened before, and this one."""
    carrier: str
    """`lane` or `zmq`."""
    version: str
    """What its next episode leases, where it falls to no arm."""
    is_evaluation: bool
    """Whether it is held at that version by an evaluation lease."""
    groups: int
    """Its episode groups."""
    rows: int
    """Of all its episode groups."""
    acts: int
    """That were answered since it was opened."""
    lock_step: bool
    fallback: str
    idle_s: float
    """Since it was last heard."""
