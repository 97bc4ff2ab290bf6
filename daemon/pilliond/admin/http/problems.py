"""The errors of the admin port, as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final

import msgspec
from aiohttp import web

from pillion_artifacts import ArtifactError
from pillion_artifacts.errors import ConflictError, HoldExistsError, PolicyNotFoundError, StoreError
from pilliond.errors import BusyError, SwitchError
from pilliond.limits import ADMIN_DETAIL_CHARACTERS_MAX

TYPE: Final = "application/problem+json"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Problem(msgspec.Struct, frozen=True):
    """Why a request failed."""

    type: str
    """`urn:pillion:` and a word that programs can match."""
    title: str
    """The meaning of the status."""
    status: int
    detail: str
    """For people."""


class ProblemError(Exception):
    """A request that is answered with a problem. `kind` is a word for programs, `detail` a text for people."""

    def __init__(self, status: HTTPStatus, kind: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.headers = headers


def problem(status: HTTPStatus, kind: str, detail: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """Returns the response. Bytes of `detail` that are no Unicode, as a header may hold, become question marks."""
    text = detail.encode(errors="replace").decode()
    body = msgspec.json.encode(Problem(f"urn:pillion:{kind}", status.phrase, int(status), text))
    return web.Response(body=body + b"\n", status=int(status), content_type=TYPE, headers=headers)


def refusal(request: web.BaseRequest, error: web.HTTPException) -> web.Response:
    """Returns a problem for an error of aiohttp itself: unknown path, wrong method, too long a body."""
    status = HTTPStatus(error.status)
    headers = {name: value for name, value in error.headers.items() if name == "Allow"}
    return problem(
        status,
        status.name.lower().replace("_", "-"),
        f"{request.method} {request.path}"[:ADMIN_DETAIL_CHARACTERS_MAX],
        headers,
    )


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns known errors into problems."""
    try:
        return await handler(request)
    except ProblemError as error:
        return problem(error.status, error.kind, str(error), error.headers)
    except web.HTTPException as error:
        if error.status < HTTPStatus.BAD_REQUEST:
            raise
        return refusal(request, error)
    except web.RequestPayloadError as error:
        return problem(
            HTTPStatus.BAD_REQUEST, "malformed", f"the body cannot be read: {error}"[:ADMIN_DETAIL_CHARACTERS_MAX]
        )
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
