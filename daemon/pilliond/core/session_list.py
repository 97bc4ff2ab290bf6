"""Session summaries for `GET /v1/sessions`, paged. Runs in the serving process, so each page is small."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from pilliond.ipc.session_info import SessionInfo
from pilliond.limits import EPISODE_GROUPS_PER_PIECE_MAX, SESSIONS_PER_PIECE_MAX

if TYPE_CHECKING:
    from pilliond.core.session import Session
    from pilliond.core.sessions import Sessions

_NANOSECONDS: Final = 1_000_000_000


def list_sessions(sessions: Sessions, after: int, now_ns: int) -> tuple[list[SessionInfo], bool]:
    """Returns some sessions opened after number `after`, oldest first, and whether they are the last."""
    opened = sessions.opened()
    first = bisect_right(opened, after, key=_number)
    listed: list[SessionInfo] = []
    groups = 0
    for session in opened[first : first + SESSIONS_PER_PIECE_MAX]:
        groups += len(session.groups)
        if listed and groups > EPISODE_GROUPS_PER_PIECE_MAX:
            break
        listed.append(_info(sessions, session, now_ns))
    return listed, first + len(listed) >= len(opened)


def _number(session: Session) -> int:
    return session.number


def _info(sessions: Sessions, session: Session, now_ns: int) -> SessionInfo:
    groups = sessions.groups_of(session)
    return SessionInfo(
        id=session.number,
        carrier="zmq" if isinstance(session.peer, bytes) else "lane",
        policy=session.policy.name,
        version=session.version.identity.version,
        is_evaluation=session.is_evaluation,
        groups=len(groups),
        rows=sum(group.rows for group in groups),
        acts=session.acts_ended + sum(group.acts for group in groups),
        lock_step=session.lock_step,
        fallback=session.fallback.value,
        idle_s=round((now_ns - session.last_heard_ns) / _NANOSECONDS, 3),
    )
