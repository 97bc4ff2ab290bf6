"""Numbers in the query of a request."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from aiohttp import web

from pilliond.problems import ProblemError

_DIGITS_MAX: Final = 19


def number_asked(request: web.Request, name: str, default: int, least: int, most: int) -> int:
    """The number that the query gives `name`; raises `ProblemError` (400, `malformed`)."""
    text = request.query.get(name)
    if text is None:
        return default
    is_number = text.isascii() and text.isdecimal() and len(text) <= _DIGITS_MAX
    if not is_number or not least <= int(text) <= most:
        raise ProblemError(
            HTTPStatus.BAD_REQUEST, "malformed", f"{name}: expected a number from {least} to {most}, came {text[:32]!r}"
        )
    return int(text)
