"""What can go wrong between two peers.

ProtocolError
├── RemoteProtocolError    the peer sent what the wire does not allow: answered by a typed error
└── LocalProtocolError     this side was asked to send what the wire does not allow
"""

from __future__ import annotations

from pillion_protocol.messages import ErrorCode


class ProtocolError(Exception):
    """A breach of the wire's rules."""

    def __init__(self, code: ErrorCode, message: str, expected: str = "", actual: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        parts = [self.message]
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.actual:
            parts.append(f"got {self.actual}")
        return "; ".join(parts)


class RemoteProtocolError(ProtocolError):
    """The peer broke the rules."""


class LocalProtocolError(ProtocolError):
    """This side was asked to break the rules."""
