"""`GET /v1/audit`: the changes to the served policies, newest first."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from http import HTTPStatus
from typing import Annotated, Final

import msgspec
from aiohttp import web

from pillion_artifacts import Store
from pillion_artifacts.store.audit_log import AuditPage
from pilliond.admin.http.endpoints import Endpoint, Scope, json_response, query_of
from pilliond.admin.http.problems import ProblemError
from pilliond.limits import ADMIN_PAGE_MAX

_DEFAULT_LIMIT: Final = 100
_LAST: Final = 2**63 - 1


class AuditQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query: at most `limit` records with numbers below `before`, of one served policy or of all."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=ADMIN_PAGE_MAX)] = _DEFAULT_LIMIT
    before: Annotated[int, msgspec.Meta(ge=1, le=_LAST)] = _LAST
    policy: Annotated[str, msgspec.Meta(max_length=128)] = ""


class AuditRoutes:
    """The handler of `/v1/audit`. It reads and verifies the log in a thread, since the log may be long."""

    def __init__(self, policies: Collection[str], store: Store) -> None:
        self._policies = policies
        self._store = store
        self._reading = asyncio.Lock()

    def endpoints(self) -> list[Endpoint]:
        """Returns its rows of the table."""
        return [
            Endpoint(
                "GET", "/v1/audit", self._audit, "List the changes, and check that the log is intact", Scope.VIEW, AuditPage,
                query=AuditQuery, problems=(HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
            )
        ]  # fmt: skip

    async def _audit(self, request: web.Request) -> web.Response:
        query = query_of(request, AuditQuery)
        if query.policy and query.policy not in self._policies:
            served = " or ".join(self._policies)
            raise ProblemError(HTTPStatus.NOT_FOUND, "policy-not-found", f"expected {served}, got {query.policy}")
        policies = [query.policy] if query.policy else list(self._policies)
        async with self._reading:
            page = await asyncio.to_thread(self._store.audit, policies, query.limit, query.before)
        return json_response(page)
