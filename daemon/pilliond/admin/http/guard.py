"""The guard of the admin port: the one middleware that asks `access` about every request, before anything is looked up for it."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from pilliond.admin.http.access import Access, Asker, Refused
from pilliond.admin.http.endpoints import Endpoint
from pilliond.admin.http.problems import ProblemError
from pilliond.admin.http.scope import Scope
from pilliond.limits import ADMIN_BODY_S_MAX
from pilliond.linux.peer_credentials import user_id

_ASKER: Final = "pilliond.asker"
_IPV6_NEIGHBOURS: Final = 64
"""The bits of an address that a network gives to one of its hosts to choose from."""


def guard(access: Access, endpoints: Iterable[Endpoint]) -> Middleware:
    """The middleware. What is at no endpoint is for those who may look: others are not told what there is not."""
    table = {(endpoint.method, endpoint.path): endpoint for endpoint in endpoints}

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        endpoint = _endpoint(request, table)
        scope = _scope(request, endpoint)
        if scope > Scope.OPEN:
            _let_in(request, access, scope)
        if endpoint is None or not endpoint.reads_body:
            await _read_body(request)
        return await handler(request)

    return guarded


def asked_by(request: web.Request, said: str) -> str:
    """Who asks, for the audit log, where the request says that it is of `said`."""
    asker: Asker = request[_ASKER]
    return asker.signs(said)


def _endpoint(request: web.Request, table: dict[tuple[str, str], Endpoint]) -> Endpoint | None:
    resource = request.match_info.route.resource
    if resource is None:
        return None
    method = "GET" if request.method == "HEAD" else request.method
    return table.get((method, resource.canonical))


def _scope(request: web.Request, endpoint: Endpoint | None) -> Scope:
    if endpoint is not None:
        return endpoint.scope
    # What can be reached without a row of the table is a mistake of ours, which must not open anything.
    return Scope.VIEW if request.match_info.route.resource is None else Scope.ADMIN


def _let_in(request: web.Request, access: Access, scope: Scope) -> None:
    """Notes who asks; raises `ProblemError`."""
    connection = None if request.transport is None else request.transport.get_extra_info("socket")
    if connection is None or connection.fileno() < 0:
        raise ProblemError(HTTPStatus.BAD_REQUEST, "gone", "who asked has gone")
    is_local = connection.family == socket.AF_UNIX
    try:
        request[_ASKER] = access.of_user(connection) if is_local else access.of_token(request.headers, scope)
    except Refused as refused:
        peer = f"user {user_id(connection)}" if is_local else _network_of(request.remote)
        # As it came, so that it stays on its line in the log.
        wait_s = access.refusals.refuse(peer, refused.reason, request.method, request.rel_url.raw_path)
        raise (_too_many(wait_s) if wait_s else refused.problem) from None


def _too_many(wait_s: int) -> ProblemError:
    detail = f"too many requests of this peer were refused: expected the next after {wait_s} s"
    headers = {"Retry-After": str(wait_s)}
    return ProblemError(HTTPStatus.TOO_MANY_REQUESTS, "too-many-refusals", detail, headers)


async def _read_body(request: web.Request) -> None:
    """Reads the body, which the handler then finds there; raises `ProblemError` where it is slow to come."""
    try:
        async with asyncio.timeout(ADMIN_BODY_S_MAX):
            await request.read()
    except TimeoutError:
        detail = f"expected the body within {ADMIN_BODY_S_MAX:g} s"
        raise ProblemError(HTTPStatus.REQUEST_TIMEOUT, "too-slow", detail, {"Connection": "close"}) from None


def _network_of(address: str | None) -> str:
    """Whom a refusal is held against: an address, of IPv6 the network that its host may choose within."""
    if address is None:
        return "somebody who has gone"
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((parsed, _IPV6_NEIGHBOURS), strict=False))
