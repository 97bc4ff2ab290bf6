"""The admin port's audit log: who changed what of the policy that is served, newest first."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Annotated, Final

import msgspec
from aiohttp import web

from pillion_artifacts import Store
from pillion_artifacts.store.audit_log import AuditPage
from pilliond.admin.http.endpoints import Endpoint, Scope, json_response, query_of
from pilliond.supervision.supervisor import Supervisor

RECORDS_ASKED_MAX: Final = 1_000
"""Records in one answer."""

_RECORDS_USUAL: Final = 100
_LAST: Final = 2**63 - 1


class RecordsAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query: at most how many, and before which one."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=RECORDS_ASKED_MAX)] = _RECORDS_USUAL
    before: Annotated[int, msgspec.Meta(ge=1, le=_LAST)] = _LAST


class AuditRoutes:
    """The handler of `/v1/audit`. The log is read, and its chain looked at, in a thread: it may be long."""

    def __init__(self, supervisor: Supervisor, store: Store) -> None:
        self._supervisor = supervisor
        self._store = store
        self._reading = asyncio.Lock()

    def endpoints(self) -> list[Endpoint]:
        """What is served."""
        return [
            Endpoint(
                "GET", "/v1/audit", self._audit, "Who changed what, and whether the log is whole", Scope.VIEW, AuditPage,
                query=RecordsAsked, problems=(HTTPStatus.SERVICE_UNAVAILABLE,),
            )
        ]  # fmt: skip

    async def _audit(self, request: web.Request) -> web.Response:
        asked = query_of(request, RecordsAsked)
        policy = self._supervisor.stable.policy
        async with self._reading:
            page = await asyncio.to_thread(self._store.audit, policy, asked.limit, asked.before)
        return json_response(page)
