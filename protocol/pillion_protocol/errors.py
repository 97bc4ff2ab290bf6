"""Violations of the protocol, by culprit.

ProtocolError
├── RemoteProtocolError    the peer sent something that the protocol does not allow; it is answered by a typed error
└── LocalProtocolError     this side was asked to send something that the protocol does not allow
"""

from __future__ import annotations

from pillion_protocol.messages import ErrorCode


class ProtocolError(Exception):
    """A violation of the protocol. `code` goes on the wire; `expected` and `actual` are for a person to read."""

    def __init__(self, code: ErrorCode, message: str, expected: str = "", actual: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        return self.message + expected_and_actual(self.expected, self.actual)


class RemoteProtocolError(ProtocolError):
    """The peer violated the protocol."""


class LocalProtocolError(ProtocolError):
    """This side was asked to violate the protocol."""


def expected_and_actual(expected: str, actual: str) -> str:
    """Returns "; expected A, got B" to follow a message, or only the half that is known."""
    known = [f"{word} {value}" for word, value in (("expected", expected), ("got", actual)) if value]
    return f"; {', '.join(known)}" if known else ""
