"""The list of sessions: what an operator is told of each, a few at a time. Plain; it runs in the serving process."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final

import msgspec

from pilliond.limits import HANDLES_PER_PIECE_MAX, SESSIONS_PER_PIECE_MAX

if TYPE_CHECKING:
    from pilliond.core.sessions import Session, Sessions

_NANOSECONDS: Final = 1_000_000_000


class SessionTold(msgspec.Struct, frozen=True):
    """A session, without what its client sent, and without the number that its messages carry: who has that is it."""

    id: int
    """How many sessions of the serving process were opened before, and this one."""
    carrier: str
    """`lane` or `zmq`."""
    version: str
    """What its next episode leases, where it falls to no arm."""
    is_of_campaign: bool
    """Whether it is held at that version by an evaluation lease."""
    handles: int
    rows: int
    """Of all its handles."""
    acts: int
    """That were answered since it was opened."""
    lock_step: bool
    fallback: str
    idle_s: float
    """Since it was last heard."""


def list_sessions(sessions: Sessions, after: int, now_ns: int) -> tuple[list[SessionTold], bool]:
    """Some of the sessions that were opened after number `after`, oldest first, and whether there are no more."""
    opened = sessions.opened()
    first = bisect_right(opened, after, key=_number)
    told: list[SessionTold] = []
    handles = 0
    for session in opened[first : first + SESSIONS_PER_PIECE_MAX]:
        handles += len(session.episodes)
        if told and handles > HANDLES_PER_PIECE_MAX:
            break
        told.append(_told(session, now_ns))
    return told, first + len(told) >= len(opened)


def _number(session: Session) -> int:
    return session.number


def _told(session: Session, now_ns: int) -> SessionTold:
    groups = session.episodes.values()
    return SessionTold(
        id=session.number,
        carrier="zmq" if isinstance(session.peer, bytes) else "lane",
        version=session.version.identity.version,
        is_of_campaign=session.is_of_campaign,
        handles=len(groups),
        rows=sum(group.rows for group in groups),
        acts=session.acts_ended + sum(group.acts for group in groups),
        lock_step=session.lock_step,
        fallback=session.fallback.value,
        idle_s=round((now_ns - session.last_heard_ns) / _NANOSECONDS, 3),
    )
