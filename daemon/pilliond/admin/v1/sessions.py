"""`GET /v1/sessions`: the live sessions. The serving process reports them in small pieces."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Annotated, Final

import msgspec
from aiohttp import web

from pilliond.admin.http.endpoints import Endpoint, Scope, json_response, query_of
from pilliond.ipc.session_info import SessionInfo
from pilliond.limits import ADMIN_PAGE_MAX
from pilliond.supervision.supervisor import Supervisor

_LAST: Final = 2**63 - 1


class SessionsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query: at most `limit` sessions with numbers above `after`."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=ADMIN_PAGE_MAX)] = ADMIN_PAGE_MAX
    after: Annotated[int, msgspec.Meta(ge=0, le=_LAST)] = 0


class SessionPage(msgspec.Struct, frozen=True):
    """A page of the live sessions, in the order in which they were opened."""

    sessions: list[SessionInfo]
    next: int | None
    """The `after` of the next page; null: there are no more sessions."""


class SessionRoutes:
    """The handler of `/v1/sessions`. Only one request at a time asks the serving process."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._lock = asyncio.Lock()

    def endpoints(self) -> list[Endpoint]:
        """Returns its rows of the table."""
        return [
            Endpoint(
                "GET", "/v1/sessions", self._list, "List the live sessions", Scope.VIEW, SessionPage, query=SessionsQuery,
                problems=(HTTPStatus.CONFLICT,),
            )
        ]  # fmt: skip

    async def _list(self, request: web.Request) -> web.Response:
        query = query_of(request, SessionsQuery)
        async with self._lock:
            return json_response(await self._page(query.limit, query.after))

    async def _page(self, limit: int, after: int) -> SessionPage:
        sessions: list[SessionInfo] = []
        is_last = False
        while not is_last and len(sessions) < limit:
            piece = await self._supervisor.sessions(sessions[-1].id if sessions else after)
            sessions += piece.sessions
            is_last = piece.is_last
        is_cut = len(sessions) > limit
        page = sessions[:limit]
        return SessionPage(page, None if is_last and not is_cut else page[-1].id)
