"""What can go wrong between two peers.

ProtocolError
├── RemoteProtocolError    the peer sent what the wire does not allow: answered by a typed error
└── LocalProtocolError     this side was asked to send what the wire does not allow
"""

from __future__ import annotations

from pillion_protocol.messages import ErrorCode


class ProtocolError(Exception):
    """A breach of the wire's rules."""

    def __init__(self, code: ErrorCode, message: str, expected: str = "", came: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.expected = expected
        self.came = came

    def __str__(self) -> str:
        parts = [self.message]
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.came:
            parts.append(f"came {self.came}")
        return "; ".join(parts)


class RemoteProtocolError(ProtocolError):
    """The peer broke the rules."""


class LocalProtocolError(ProtocolError):
    """This side was asked to break the rules."""
