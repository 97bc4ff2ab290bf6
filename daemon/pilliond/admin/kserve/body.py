"""The body of an inference request: JSON, followed by the raw bytes of the inputs that are not in the JSON."""

from __future__ import annotations

import asyncio
import zlib
from http import HTTPStatus
from typing import Final, NamedTuple

import msgspec
from aiohttp import web

from pilliond.admin.kserve.errors import KServeError, bad_request
from pilliond.admin.kserve.messages import InferRequest
from pilliond.limits import KSERVE_BODY_S_MAX

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
"""The header of requests and responses with the length of the JSON; without it the whole body is JSON."""

_ENCODINGS: Final = ("identity", "gzip", "deflate")
_GZIP_OR_ZLIB: Final = 32 + zlib.MAX_WBITS
"""Makes zlib detect which of the two it is."""

_decoder = msgspec.json.Decoder(InferRequest)


class Body(NamedTuple):
    """A parsed request, and the bytes after its JSON."""

    request: InferRequest
    binary: memoryview


async def read_body(request: web.Request, bytes_max: int) -> Body:
    """Reads, inflates and splits the body of a request.

    Raises `KServeError`: 400 if it is malformed, 408 if it does not arrive in time, 413 if it is longer than `bytes_max`,
    compressed or inflated, 415 for an encoding other than gzip and deflate.
    """
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if encoding not in _ENCODINGS:
        raise KServeError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Encoding: expected gzip or deflate, got {encoding[:20]!r}"
        )
    try:
        async with asyncio.timeout(KSERVE_BODY_S_MAX):
            data = await _read(request, bytes_max)
    except TimeoutError:
        raise KServeError(HTTPStatus.REQUEST_TIMEOUT, f"expected the body within {KSERVE_BODY_S_MAX:g} s") from None
    except (ConnectionResetError, web.RequestPayloadError):
        raise bad_request("body: expected the announced length or valid chunks, got something else") from None
    if encoding != "identity":
        data = _inflated(data, bytes_max)
    return _split(data, request.headers.get(HEADER_LENGTH))


async def _read(request: web.Request, bytes_max: int) -> bytes:
    if (request.content_length or 0) > bytes_max:
        raise _too_large(bytes_max)
    data = bytearray()
    async for chunk in request.content.iter_any():
        data += chunk
        if len(data) > bytes_max:
            raise _too_large(bytes_max)
    return bytes(data)


def _inflated(data: bytes, bytes_max: int) -> bytes:
    """Returns the inflated data; never holds more than `bytes_max` of it."""
    inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        inflated = inflater.decompress(data, bytes_max + 1)
    except zlib.error:
        raise _not_compressed() from None
    if len(inflated) > bytes_max:
        raise _too_large(bytes_max)
    if not inflater.eof or inflater.unused_data:
        raise _not_compressed()
    return inflated


def _not_compressed() -> KServeError:
    return bad_request("body: expected one gzip or zlib stream, as Content-Encoding says, got something else")


def _too_large(bytes_max: int) -> KServeError:
    return KServeError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"body: expected at most {bytes_max} bytes, got more")


def _split(data: bytes, header: str | None) -> Body:
    length = len(data)
    if header is not None:
        if not (header.isascii() and header.isdecimal() and len(header) < 20 and int(header) <= len(data)):
            raise bad_request(f"{HEADER_LENGTH}: expected 0 to {len(data)}, the bytes of the body, got {header[:20]!r}")
        length = int(header)
    view = memoryview(data)
    try:
        return Body(_decoder.decode(view[:length]), view[length:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"body: {error}") from None
