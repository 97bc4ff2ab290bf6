"""What `/v2` answers where it does not infer: `{"error": …}` with a status, as KServe's protocol has it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

import msgspec
from aiohttp import web

from pillion_protocol import ErrorCode
from pilliond.admin.http.problems import TYPE as PROBLEM_TYPE
from pilliond.admin.http.problems import Handler

RETRY_AFTER_S: Final = 1
"""When to ask again where the daemon could not at this moment."""

_PATH_MAX: Final = 200

STATUSES: Final = {
    # the caller's: another request would be answered
    ErrorCode.ROWS_MISMATCH: HTTPStatus.BAD_REQUEST,
    ErrorCode.SHAPE_MISMATCH: HTTPStatus.BAD_REQUEST,
    ErrorCode.NON_FINITE: HTTPStatus.BAD_REQUEST,
    ErrorCode.NOT_SAMPLABLE: HTTPStatus.BAD_REQUEST,
    ErrorCode.TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ErrorCode.POLICY_NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorCode.VERSION_NOT_FOUND: HTTPStatus.NOT_FOUND,
    # what was there once: the sequence is over
    ErrorCode.VERSION_GONE: HTTPStatus.GONE,
    ErrorCode.SESSION_UNKNOWN: HTTPStatus.GONE,
    ErrorCode.EPOCH_STALE: HTTPStatus.GONE,
    ErrorCode.EPISODE_UNKNOWN: HTTPStatus.GONE,
    # the moment's
    ErrorCode.OVERLOADED: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.DRAINING: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    # ours: what this client of the data path never asks for, or should not have
    ErrorCode.MALFORMED: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorCode.UNKNOWN_MESSAGE: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorCode.UNSUPPORTED_PROTOCOL: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorCode.SPEC_MISMATCH: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorCode.SEQUENCE_STALE: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorCode.NO_SAFE_ACTION: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorCode.SLOT_UNKNOWN: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorCode.SLOT_STALE: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorCode.NOT_ALLOWED: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorCode.SUPERSEDED: HTTPStatus.INTERNAL_SERVER_ERROR,
    ErrorCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""The status for each error of the data path."""


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every answer of `/v2` that is not a success."""

    error: str


class KServeError(Exception):
    """A request below `/v2` that gets no answer but this sentence."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


def bad_request(message: str) -> KServeError:
    """The caller's mistake."""
    return KServeError(HTTPStatus.BAD_REQUEST, message)


def error_response(status: HTTPStatus, message: str) -> web.Response:
    """The response."""
    response = web.Response(
        body=msgspec.json.encode(ErrorBody(message)) + b"\n", status=int(status), content_type="application/json"
    )
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


@web.middleware
async def kserve_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Says what goes wrong below `/v2` in the protocol's words, whoever said it in others; elsewhere all passes.

    It stands outside of whatever makes problems.
    """
    if request.path != "/v2" and not request.path.startswith("/v2/"):
        return await handler(request)
    try:
        response = await handler(request)
    except KServeError as error:
        return error_response(error.status, str(error))
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        sentence = f"{error.reason}: {request.method} {request.path[:_PATH_MAX]}"
        return _with_headers(error_response(HTTPStatus(error.status), sentence), error)
    if isinstance(response, web.Response) and response.content_type == PROBLEM_TYPE:
        assert isinstance(response.body, bytes)
        told = msgspec.json.decode(response.body, type=_Detail)
        return _with_headers(error_response(HTTPStatus(response.status), told.detail), response)
    return response


class _Detail(msgspec.Struct):
    """What a problem says for people."""

    detail: str = ""


def _with_headers(response: web.Response, said: web.StreamResponse) -> web.Response:
    """The response with the headers that `said` had beside those of its body: `Allow`, `WWW-Authenticate`, `Retry-After`."""
    for name, value in said.headers.items():
        if name not in ("Content-Type", "Content-Length"):
            response.headers[name] = value
    return response
