"""What the admin port answers where it cannot do what it was asked: `application/problem+json` (RFC 9457)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final

import msgspec
from aiohttp import web

from pillion_artifacts import ArtifactError
from pillion_artifacts.errors import ConflictError, LeaseExistsError, PolicyNotFoundError
from pilliond.errors import SwitchError
from pilliond.releases import BusyError

_TYPE: Final = "application/problem+json"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ProblemError(Exception):
    """A request that gets no answer but a problem: `type` is a word for programs, the message is for people."""

    def __init__(self, status: HTTPStatus, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind


def problem(status: HTTPStatus, kind: str, detail: str) -> web.Response:
    """The response."""
    body = {"type": f"urn:pillion:{kind}", "title": status.phrase, "status": int(status), "detail": detail}
    return web.Response(body=msgspec.json.encode(body) + b"\n", status=int(status), content_type=_TYPE)


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns what is known to go wrong below `/v1` into problems."""
    try:
        return await handler(request)
    except ProblemError as error:
        return problem(error.status, error.kind, str(error))
    except web.HTTPException as error:
        if not request.path.startswith("/v1/") or error.status < HTTPStatus.BAD_REQUEST:
            raise
        status = HTTPStatus(error.status)
        return problem(status, status.name.lower().replace("_", "-"), f"{request.method} {request.path}")
    except BusyError as error:
        return problem(HTTPStatus.CONFLICT, "busy", str(error))
    except SwitchError as error:
        return problem(HTTPStatus.CONFLICT, "cannot-switch", str(error))
    except PolicyNotFoundError as error:
        return problem(HTTPStatus.NOT_FOUND, "version-not-found", str(error))
    except LeaseExistsError as error:
        return problem(HTTPStatus.CONFLICT, "lease-exists", str(error))
    except ConflictError as error:
        return problem(HTTPStatus.CONFLICT, "moved-meanwhile", str(error))
    except ArtifactError as error:
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, "artifact", str(error))
