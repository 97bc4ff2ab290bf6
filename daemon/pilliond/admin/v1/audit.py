"""`GET /v1/audit`: the changes to the served policy, newest first."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Annotated, Final

import msgspec
from aiohttp import web

from pillion_artifacts import Store
from pillion_artifacts.store.audit_log import AuditPage
from pilliond.admin.http.endpoints import Endpoint, Scope, json_response, query_of
from pilliond.limits import ADMIN_PAGE_MAX
from pilliond.supervision.supervisor import Supervisor

_DEFAULT_LIMIT: Final = 100
_LAST: Final = 2**63 - 1


class AuditQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query: at most `limit` records with numbers below `before`."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=ADMIN_PAGE_MAX)] = _DEFAULT_LIMIT
    before: Annotated[int, msgspec.Meta(ge=1, le=_LAST)] = _LAST


class AuditRoutes:
    """The handler of `/v1/audit`. It reads and verifies the log in a thread, since the log may be long."""

    def __init__(self, supervisor: Supervisor, store: Store) -> None:
        self._supervisor = supervisor
        self._store = store
        self._reading = asyncio.Lock()

    def endpoints(self) -> list[Endpoint]:
        """Returns its rows of the table."""
        return [
            Endpoint(
                "GET", "/v1/audit", self._audit, "List the changes, and check that the log is intact", Scope.VIEW, AuditPage,
                query=AuditQuery, problems=(HTTPStatus.SERVICE_UNAVAILABLE,),
            )
        ]  # fmt: skip

    async def _audit(self, request: web.Request) -> web.Response:
        query = query_of(request, AuditQuery)
        policy = self._supervisor.stable.policy
        async with self._reading:
            page = await asyncio.to_thread(self._store.audit, policy, query.limit, query.before)
        return json_response(page)
