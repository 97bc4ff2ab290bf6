"""The guard of the admin port: the middleware that checks the access of every request before its handler runs."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from pilliond.admin.http.access import Access, Caller, Refused
from pilliond.admin.http.endpoints import Endpoint
from pilliond.admin.http.problems import ProblemError
from pilliond.admin.http.scope import Scope
from pilliond.limits import ADMIN_BODY_S_MAX
from pilliond.linux.peer_credentials import user_id

_CALLER: Final = "pilliond.caller"
_IPV6_NETWORK_BITS: Final = 64
"""A host may choose the other bits of its IPv6 address freely."""


def guard(access: Access, endpoints: Iterable[Endpoint]) -> Middleware:
    """Returns the middleware. An unknown path needs the scope `view`: callers without access do not learn what exists."""
    table = {(endpoint.method, endpoint.path): endpoint for endpoint in endpoints}

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        endpoint = _endpoint(request, table)
        scope = _scope(request, endpoint)
        if scope > Scope.OPEN:
            _authorize(request, access, scope)
        if endpoint is None or not endpoint.reads_body:
            await _read_body(request)
        return await handler(request)

    return guarded


def asked_by(request: web.Request, claimed: str) -> str:
    """Returns the author of a request for the audit log; `claimed` is the author that the request names."""
    caller: Caller = request[_CALLER]
    return caller.author(claimed)


def _endpoint(request: web.Request, table: dict[tuple[str, str], Endpoint]) -> Endpoint | None:
    resource = request.match_info.route.resource
    if resource is None:
        return None
    method = "GET" if request.method == "HEAD" else request.method
    return table.get((method, resource.canonical))


def _scope(request: web.Request, endpoint: Endpoint | None) -> Scope:
    if endpoint is not None:
        return endpoint.scope
    # A route without a row in the table is a bug. It must not give access to anything.
    return Scope.VIEW if request.match_info.route.resource is None else Scope.ADMIN


def _authorize(request: web.Request, access: Access, scope: Scope) -> None:
    """Notes the caller of a request; raises `ProblemError` if it has no access."""
    connection = None if request.transport is None else request.transport.get_extra_info("socket")
    if connection is None or connection.fileno() < 0:
        raise ProblemError(HTTPStatus.BAD_REQUEST, "gone", "the caller disconnected")
    is_local = connection.family == socket.AF_UNIX
    try:
        request[_CALLER] = access.of_user(connection) if is_local else access.of_token(request.headers, scope)
    except Refused as refused:
        peer = f"user {user_id(connection)}" if is_local else _network_of(request.remote)
        # The undecoded path: a line break in it must not begin a line of the log.
        wait_s = access.refusals.refuse(peer, refused.reason, request.method, request.rel_url.raw_path)
        raise (_too_many(wait_s) if wait_s else refused.problem) from None


def _too_many(wait_s: int) -> ProblemError:
    detail = f"too many requests of this peer were refused: try again after {wait_s} s"
    headers = {"Retry-After": str(wait_s)}
    return ProblemError(HTTPStatus.TOO_MANY_REQUESTS, "too-many-refusals", detail, headers)


async def _read_body(request: web.Request) -> None:
    """Reads the body, which aiohttp keeps for the handler; raises `ProblemError` if it is too slow."""
    try:
        async with asyncio.timeout(ADMIN_BODY_S_MAX):
            await request.read()
    except TimeoutError:
        detail = f"expected the body within {ADMIN_BODY_S_MAX:g} s"
        raise ProblemError(HTTPStatus.REQUEST_TIMEOUT, "too-slow", detail, {"Connection": "close"}) from None


def _network_of(address: str | None) -> str:
    """Returns what refusals are counted by: an IPv4 address, or the network of an IPv6 address."""
    if address is None:
        return "a peer that disconnected"
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((parsed, _IPV6_NETWORK_BITS), strict=False))
