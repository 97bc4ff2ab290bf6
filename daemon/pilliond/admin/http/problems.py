"""What the admin port answers where it cannot do what it was asked: `application/problem+json` (RFC 9457)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final

import msgspec
from aiohttp import web

from pillion_artifacts import ArtifactError
from pillion_artifacts.errors import ConflictError, HoldExistsError, PolicyNotFoundError, StoreError
from pilliond.errors import BusyError, SwitchError

TYPE: Final = "application/problem+json"
_SAID_MAX: Final = 200

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Problem(msgspec.Struct, frozen=True):
    """Why a request was not done."""

    type: str
    """`urn:pillion:` and a word for programs."""
    title: str
    """What the status means."""
    status: int
    detail: str
    """For people."""


class ProblemError(Exception):
    """A request that gets no answer but a problem: `type` is a word for programs, the message is for people."""

    def __init__(self, status: HTTPStatus, kind: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.headers = headers


def problem(status: HTTPStatus, kind: str, detail: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """The response. What of `detail` is no Unicode (a header may be any bytes) becomes question marks."""
    said = detail.encode(errors="replace").decode()
    body = msgspec.json.encode(Problem(f"urn:pillion:{kind}", status.phrase, int(status), said))
    return web.Response(body=body + b"\n", status=int(status), content_type=TYPE, headers=headers)


def refusal(request: web.BaseRequest, error: web.HTTPException) -> web.Response:
    """What aiohttp refuses by itself (no such path, no such method, too long a body) as a problem."""
    status = HTTPStatus(error.status)
    headers = {name: value for name, value in error.headers.items() if name == "Allow"}
    return problem(
        status, status.name.lower().replace("_", "-"), f"{request.method} {request.path}"[:_SAID_MAX], headers
    )


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns what is known to go wrong into problems."""
    try:
        return await handler(request)
    except ProblemError as error:
        return problem(error.status, error.kind, str(error), error.headers)
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        return refusal(request, error)
    except web.RequestPayloadError as error:
        return problem(HTTPStatus.BAD_REQUEST, "malformed", f"the body cannot be read: {error}"[:_SAID_MAX])
    except BusyError as error:
        return problem(HTTPStatus.CONFLICT, "busy", str(error))
    except SwitchError as error:
        return problem(HTTPStatus.CONFLICT, "cannot-switch", str(error))
    except PolicyNotFoundError as error:
        return problem(HTTPStatus.NOT_FOUND, "version-not-found", str(error))
    except HoldExistsError as error:
        return problem(HTTPStatus.CONFLICT, "hold-exists", str(error))
    except ConflictError as error:
        return problem(HTTPStatus.CONFLICT, "moved-meanwhile", str(error))
    except StoreError as error:
        return problem(HTTPStatus.SERVICE_UNAVAILABLE, "store", str(error))
    except ArtifactError as error:
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, "artifact", str(error))
