"""Endpoints of the admin port: the table that the routes, their scopes and the OpenAPI description come from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

import msgspec
from aiohttp import web

from pillion_artifacts.errors import UNREADABLE
from pilliond.admin.http.problems import Problem, ProblemError
from pilliond.admin.http.scope import Scope as Scope  # noqa: PLC0414  # a row of the table needs one

T = TypeVar("T", bound=msgspec.Struct)

Text = Annotated[str, msgspec.Meta(max_length=1_000)]
"""A reason, or a name."""

Version = Annotated[str, msgspec.Meta(max_length=1_000, pattern="^[!-~]")]
"""`1.2.3`, a range, an alias or a digest."""


class Endpoint(msgspec.Struct, frozen=True):
    """One method of one path."""

    method: str
    path: str
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    summary: str
    scope: Scope
    answer: Any = None
    """The type of its JSON response; None: the response is no JSON."""
    body: type[msgspec.Struct] | None = None
    """The type of its JSON body; None: it has none."""
    statuses: tuple[HTTPStatus, ...] = (HTTPStatus.OK,)
    """The statuses of its successful responses."""
    query: type[msgspec.Struct] | None = None
    """The type of its query; each field is a parameter."""
    problems: tuple[HTTPStatus, ...] = ()
    """The statuses of its errors, beside those that `openapi.refusals` derives from the row."""
    tagged: bool = False
    """A GET returns an `ETag` of the state; a verb accepts it in `If-Match`."""
    error: type[msgspec.Struct] = Problem
    """The type of its errors; any type but `Problem` is sent as `application/json`."""
    media_types: tuple[str, ...] = ("text/plain",)
    """The media types of a response that is no JSON."""
    reads_body: bool = False
    """Its handler reads the body itself, within a bound of its own; the body may hold more than JSON."""

    def route(self) -> web.RouteDef:
        """Returns the route for aiohttp; a GET route also answers HEAD."""
        if self.method == "GET":
            return web.get(self.path, self.handler)
        return web.route(self.method, self.path, self.handler)


def json_response(value: Any, status: HTTPStatus = HTTPStatus.OK) -> web.Response:
    """Returns a response with indented JSON."""
    body = msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
    return web.Response(body=body, status=int(status), content_type="application/json")


def query_of(request: web.Request, kind: type[T]) -> T:
    """Returns the query of a request; raises `ProblemError` (400, `malformed`)."""
    try:
        return msgspec.convert(dict(request.query), kind, strict=False)
    except UNREADABLE as error:
        raise ProblemError(HTTPStatus.BAD_REQUEST, "malformed", str(error)) from None


async def body_of(request: web.Request, kind: type[T]) -> T:
    """Returns the body of a request; no body counts as `{}`. Raises `ProblemError` (400, `malformed`; 415, `not-json`)."""
    data = await request.read()
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise ProblemError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "not-json", "expected a body that is not compressed")
    if data and "Content-Type" in request.headers and request.content_type != "application/json":
        raise ProblemError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "not-json", f"expected application/json, got {request.content_type}"
        )
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except UNREADABLE as error:
        raise ProblemError(HTTPStatus.BAD_REQUEST, "malformed", str(error)) from None
