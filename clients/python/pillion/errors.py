"""What a client raises, by culprit.

PillionError
├── InvalidObservationError (ValueError)     the caller's: it does not fit the session's spec; nothing was sent
├── RefusedError                             the daemon answered with a typed error; see `code`
├── EpisodeLostError                         the daemon that held this episode is gone; begin another
└── UnavailableError (ConnectionError)       nobody answers
    └── RequestTimeoutError (TimeoutError)   an answer did not come in time
"""

from __future__ import annotations

from pillion_protocol import Error
from pillion_protocol.default_addresses import own_lane_address


class PillionError(Exception):
    """Anything this package raises on purpose."""


class InvalidObservationError(PillionError, ValueError):
    """An observation, mask or seed does not fit what the session agreed upon. Nothing was sent."""


class RefusedError(PillionError):
    """The daemon refused one request and said why; the session goes on.

    `code` is one of `pillion_protocol.ErrorCode`, or a newer string; `expected` and `actual` are for a person.
    """

    def __init__(self, code: str, message: str, expected: str = "", actual: str = "") -> None:
        details = "".join(f"; {word} {value}" for word, value in (("expected", expected), ("got", actual)) if value)
        super().__init__(f"{code}: {message}{details}")
        self.code = code
        self.message = message
        self.expected = expected
        self.actual = actual

    @classmethod
    def from_wire(cls, error: Error) -> RefusedError:
        """The exception for an error message."""
        return cls(error.code, error.message, error.expected, error.actual)


class EpisodeLostError(PillionError):
    """The daemon does not know this episode any more: it was started again, or it said goodbye.

    Its version and its state went with it, so nothing goes on silently: begin a new episode in the same session.
    """


class UnavailableError(PillionError, ConnectionError):
    """Nobody answers at the address."""


class RequestTimeoutError(UnavailableError, TimeoutError):
    """No answer within `timeout_s`. It is not known whether the request was run; a late answer is dropped."""


def nobody_answers(address: str, timeout_s: float) -> UnavailableError:
    """The error for a daemon that did not answer a hello; it says how that address was found, if nobody named it."""
    found = " (where this user's daemon listens by default)" if address == own_lane_address() else ""
    return UnavailableError(f"nobody answers at {address}{found} within {timeout_s:g} s: is pilliond running?")
