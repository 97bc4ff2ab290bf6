"""Endpoints of the admin port: the table that its routes, who may use them, and its OpenAPI description come from."""

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
"""A reason, who asks."""

Version = Annotated[str, msgspec.Meta(max_length=1_000, pattern="^[!-~]")]
"""`1.2.3`, a range, an alias or a digest."""


class Endpoint(msgspec.Struct, frozen=True):
    """A method of a path."""

    method: str
    path: str
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    summary: str
    scope: Scope
    answer: Any = None
    """The type of its JSON; None: it gives something else."""
    body: type[msgspec.Struct] | None = None
    """What it takes, as JSON."""
    statuses: tuple[HTTPStatus, ...] = (HTTPStatus.OK,)
    """With which it answers where it does what it was asked."""
    query: type[msgspec.Struct] | None = None
    """What it takes in the query; a field is a parameter."""
    problems: tuple[HTTPStatus, ...] = ()
    """Why it may not do it, beside what `openapi` can tell from the row itself."""
    tagged: bool = False
    """Its `ETag` says which state it looked at; a verb takes one in `If-Match`."""
    error: type[msgspec.Struct] = Problem
    """The type of its JSON where it did not do it; other than `Problem`, it is `application/json`."""
    media_types: tuple[str, ...] = ("text/plain",)
    """What it gives where that is not JSON."""
    reads_body: bool = False
    """Its handler reads the body as it comes, within a bound of its own, and it may be more than JSON."""

    def route(self) -> web.RouteDef:
        """As aiohttp takes it. What is looked at with GET can be asked for its head."""
        if self.method == "GET":
            return web.get(self.path, self.handler)
        return web.route(self.method, self.path, self.handler)


def json_response(value: Any, status: HTTPStatus = HTTPStatus.OK) -> web.Response:
    """A value as JSON for people and programs."""
    body = msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
    return web.Response(body=body, status=int(status), content_type="application/json")


def query_of(request: web.Request, kind: type[T]) -> T:
    """The query of a request; raises `ProblemError` (400, `malformed`)."""
    try:
        return msgspec.convert(dict(request.query), kind, strict=False)
    except UNREADABLE as error:
        raise ProblemError(HTTPStatus.BAD_REQUEST, "malformed", str(error)) from None


async def body_of(request: web.Request, kind: type[T]) -> T:
    """The body of a request, none being an empty one; raises `ProblemError` (400, `malformed`; 415, `not-json`)."""
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
