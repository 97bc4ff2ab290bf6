"""The admin port's audit log: who changed what of the policy that is served, newest first."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from pillion_artifacts import Store
from pillion_artifacts.audit import AuditPage
from pilliond.endpoints import Endpoint, Scope, json_response
from pilliond.numbers_asked import number_asked
from pilliond.supervisor import Supervisor

RECORDS_ASKED_MAX: Final = 1_000
"""Records in one answer."""

_RECORDS_USUAL: Final = 100
_LAST: Final = 2**63 - 1


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
                "GET", "/v1/audit", self._audit, "Who changed what, and whether the log is whole", Scope.VIEW, AuditPage
            )
        ]

    async def _audit(self, request: web.Request) -> web.Response:
        limit = number_asked(request, "limit", _RECORDS_USUAL, 1, RECORDS_ASKED_MAX)
        before = number_asked(request, "before", _LAST, 1, _LAST)
        policy = self._supervisor.stable.policy
        async with self._reading:
            page = await asyncio.to_thread(self._store.audit, policy, limit, before)
        return json_response(page)
