"""One row of a text observation: the UTF-8 bytes of the text, then zero bytes up to the room of the row."""

from __future__ import annotations

from typing import NamedTuple

from pillion_protocol.errors import LocalProtocolError
from pillion_protocol.messages import ErrorCode

_SHOWN_CHARACTERS = 20


class TextFault(NamedTuple):
    """Why the bytes of a row are no text: what was expected, and what the row holds."""

    expected: str
    actual: str


def encode_text(text: str, bytes_min: int, bytes_max: int) -> bytes:
    """Returns the row of `bytes_max` bytes that holds a text.

    Raises `LocalProtocolError` (`bad_text`) if the text has fewer than `bytes_min` bytes in UTF-8 or more than
    `bytes_max`, holds a zero byte, or cannot be written in UTF-8 (half a surrogate pair).
    """
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise _bad("text that UTF-8 can hold", f"{text[error.start]!r} at character {error.start}") from None
    if len(encoded) > bytes_max:
        raise _bad(f"at most {_bytes(bytes_max)} of UTF-8", f"{_shown(text)} of {_bytes(len(encoded))}")
    if len(encoded) < bytes_min:
        raise _bad(f"at least {_bytes(bytes_min)} of UTF-8", f"{_shown(text)} of {_bytes(len(encoded))}")
    if "\0" in text:
        raise _bad("text without zero bytes", f"one at character {text.index(chr(0))}")
    return encoded.ljust(bytes_max, b"\0")


def fault_of_text(row: bytes, bytes_min: int) -> TextFault | None:
    """Returns why a row holds no text of at least `bytes_min` bytes; None if it does."""
    encoded = row.rstrip(b"\0")
    if b"\0" in encoded:
        zero = encoded.index(b"\0")
        return TextFault("nothing but zero bytes after the text", f"others after the zero byte {zero}")
    if len(encoded) < bytes_min:
        return TextFault(f"at least {_bytes(bytes_min)} of UTF-8", _bytes(len(encoded)))
    try:
        encoded.decode()
    except UnicodeDecodeError as error:
        return TextFault("UTF-8", f"0x{encoded[error.start]:02x} at byte {error.start}")
    return None


def _bad(expected: str, actual: str) -> LocalProtocolError:
    return LocalProtocolError(ErrorCode.BAD_TEXT, "this is no text of the spec", expected, actual)


def _bytes(count: int) -> str:
    return f"{count} byte" if count == 1 else f"{count} bytes"


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…")
