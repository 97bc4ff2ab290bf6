"""The errors of `/v2`: `{"error": …}` with a status, as KServe's protocol defines."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

import msgspec
from aiohttp import web

from pillion_protocol import ErrorCode
from pilliond.admin.http.problems import TYPE as PROBLEM_TYPE
from pilliond.admin.http.problems import Handler
from pilliond.limits import ADMIN_DETAIL_CHARACTERS_MAX

RETRY_AFTER_S: Final = 1
"""The `Retry-After` of a 503."""

STATUSES: Final = {
    # The caller's: another request would succeed.
    ErrorCode.ROWS_MISMATCH: HTTPStatus.BAD_REQUEST,
    ErrorCode.SHAPE_MISMATCH: HTTPStatus.BAD_REQUEST,
    ErrorCode.NON_FINITE: HTTPStatus.BAD_REQUEST,
    ErrorCode.OUT_OF_BOUNDS: HTTPStatus.BAD_REQUEST,
    ErrorCode.BAD_TEXT: HTTPStatus.BAD_REQUEST,
    ErrorCode.NOT_SAMPLABLE: HTTPStatus.BAD_REQUEST,
    ErrorCode.TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ErrorCode.POLICY_NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorCode.VERSION_NOT_FOUND: HTTPStatus.NOT_FOUND,
    # No longer there: the sequence has ended.
    ErrorCode.VERSION_GONE: HTTPStatus.GONE,
    ErrorCode.SESSION_UNKNOWN: HTTPStatus.GONE,
    ErrorCode.EPOCH_STALE: HTTPStatus.GONE,
    ErrorCode.EPISODE_UNKNOWN: HTTPStatus.GONE,
    ErrorCode.STATE_LOST: HTTPStatus.GONE,
    # Temporary.
    ErrorCode.OVERLOADED: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.DRAINING: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.ENGINE_RESTARTING: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    # Ours: the engine of this version does not work.
    ErrorCode.ENGINE_OUT: HTTPStatus.INTERNAL_SERVER_ERROR,
    # Ours: this client of the data path never sends a request with such an answer.
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
"""The HTTP status of each error of the data path."""


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every error below `/v2`."""

    error: str


class KServeError(Exception):
    """A request below `/v2` that failed, with its HTTP status."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


def bad_request(message: str) -> KServeError:
    """Returns an error with status 400."""
    return KServeError(HTTPStatus.BAD_REQUEST, message)


def error_response(status: HTTPStatus, message: str) -> web.Response:
    """Returns the response of an error."""
    response = web.Response(
        body=msgspec.json.encode(ErrorBody(message)) + b"\n", status=int(status), content_type="application/json"
    )
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response


@web.middleware
async def kserve_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns every error below `/v2` into the protocol's form, also problems; other paths pass unchanged.

    It must wrap the middleware that makes problems.
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
        sentence = f"{error.reason}: {request.method} {request.path[:ADMIN_DETAIL_CHARACTERS_MAX]}"
        return _with_headers(error_response(HTTPStatus(error.status), sentence), error)
    if isinstance(response, web.Response) and response.content_type == PROBLEM_TYPE:
        assert isinstance(response.body, bytes)
        problem = msgspec.json.decode(response.body, type=_Detail)
        return _with_headers(error_response(HTTPStatus(response.status), problem.detail), response)
    return response


class _Detail(msgspec.Struct):
    """The part of a problem that an error keeps."""

    detail: str = ""


def _with_headers(response: web.Response, original: web.StreamResponse) -> web.Response:
    """Copies the headers of `original` that do not describe its body: `Allow`, `WWW-Authenticate`, `Retry-After`."""
    for name, value in original.headers.items():
        if name not in ("Content-Type", "Content-Length"):
            response.headers[name] = value
    return response
