"""The admin port's sessions: who is connected, as the serving process tells it, a few at a time."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Annotated, Final

import msgspec
from aiohttp import web

from pilliond.admin.http.endpoints import Endpoint, Scope, json_response, query_of
from pilliond.ipc.session_info import SessionInfo
from pilliond.supervision.supervisor import Supervisor

SESSIONS_ASKED_MAX: Final = 1_000
"""Sessions in one answer."""

_LAST: Final = 2**63 - 1


class SessionsAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query: at most how many, and behind which one."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=SESSIONS_ASKED_MAX)] = SESSIONS_ASKED_MAX
    after: Annotated[int, msgspec.Meta(ge=0, le=_LAST)] = 0


class SessionPage(msgspec.Struct, frozen=True):
    """Some of the live sessions, in the order in which they were opened."""

    sessions: list[SessionInfo]
    next: int | None
    """What `after` asks for the rest; null: there are no more."""


class SessionRoutes:
    """The handler of `/v1/sessions`. One request at a time asks the serving process."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._asking = asyncio.Lock()

    def endpoints(self) -> list[Endpoint]:
        """What is served."""
        return [
            Endpoint(
                "GET", "/v1/sessions", self._list, "The live sessions", Scope.VIEW, SessionPage, query=SessionsAsked,
                problems=(HTTPStatus.CONFLICT,),
            )
        ]  # fmt: skip

    async def _list(self, request: web.Request) -> web.Response:
        asked = query_of(request, SessionsAsked)
        async with self._asking:
            return json_response(await self._page(asked.limit, asked.after))

    async def _page(self, limit: int, after: int) -> SessionPage:
        sessions: list[SessionInfo] = []
        is_last = False
        while not is_last and len(sessions) < limit:
            piece = await self._supervisor.sessions(sessions[-1].id if sessions else after)
            sessions += piece.sessions
            is_last = piece.is_last
        is_cut = len(sessions) > limit
        told = sessions[:limit]
        return SessionPage(told, None if is_last and not is_cut else told[-1].id)
