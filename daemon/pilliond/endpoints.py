"""Endpoints of the admin port: the table that its routes, who may use them, and its OpenAPI description come from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import IntEnum
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

import msgspec
from aiohttp import web

from pilliond.problems import ProblemError

T = TypeVar("T", bound=msgspec.Struct)

Text = Annotated[str, msgspec.Meta(max_length=1_000)]
"""A reason, who asks, a version."""


class Scope(IntEnum):
    """What somebody must be let to do; each holds those below it."""

    OPEN = 0
    """Whether it lives and is ready: for whoever restarts or routes, without a token."""
    VIEW = 1
    """To look."""
    OPERATE = 2
    """To change which version answers."""
    ADMIN = 3
    """To end it."""


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


async def body_of(request: web.Request, kind: type[T]) -> T:
    """The body of a request, none being an empty one; raises `ProblemError` (400, `malformed`)."""
    data = await request.read()
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProblemError(HTTPStatus.BAD_REQUEST, "malformed", str(error)) from None
