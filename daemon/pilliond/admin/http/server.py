"""The HTTP server of the admin port: aiohttp's, which here answers its own errors with a problem, too."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from pilliond.admin.http.problems import problem, refusal


class AdminRunner(web.AppRunner):
    """Runs an application whose every error is a problem. `connection` holds arguments of `web.RequestHandler`.

    It does not inflate compressed bodies: only the handler knows how large they may become.
    """

    def __init__(self, application: web.Application, *, shutdown_timeout: float, **connection: Any) -> None:
        super().__init__(application, shutdown_timeout=shutdown_timeout)
        self._connection = {"access_log": None, "auto_decompress": False, **connection}

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(made.request_handler, request_factory=made.request_factory, **self._connection)


class _Server(web.Server):
    def __init__(self, handler: Any, *, request_factory: Any, **connection: Any) -> None:
        super().__init__(handler, request_factory=request_factory)
        self._connection = connection

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=asyncio.get_running_loop(), **self._connection)


class _Connection(web.RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answers what is no HTTP, a peer that disconnected in the middle of its request, or a bug; only a bug gets a traceback."""
        if isinstance(exc, ConnectionError):
            response = problem(HTTPStatus.BAD_REQUEST, "malformed", "expected the whole of the request")
        elif status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            super().handle_error(request, status, exc, message)
            response = problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "a bug: see the log")
        elif isinstance(exc, LineTooLong):
            kind = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            response = problem(kind, "head-too-long", "expected shorter lines in the head of the request")
        else:
            response = problem(HTTPStatus.BAD_REQUEST, "malformed", "expected a request of HTTP/1.1")
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, *rest: Any
    ) -> tuple[web.StreamResponse, bool]:
        """Sends a response."""
        if isinstance(resp, web.HTTPException) and resp.status >= HTTPStatus.BAD_REQUEST:
            resp = refusal(request, resp)
        return await super().finish_response(request, resp, *rest)
