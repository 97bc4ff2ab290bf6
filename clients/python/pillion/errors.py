"""The exceptions of the client, by culprit.

PillionError
├── InvalidObservationError (ValueError)     the caller's input does not fit the session's spec; nothing was sent
├── RefusedError                             the daemon answered with a typed error; see `code`
│   ├── EngineRestartingError                the engine of this version is being started again; send the act again
│   ├── StateLostError                       the recurrent state of an episode was lost; begin it anew
│   └── EngineOutError                       the engine of this version keeps failing; begin a new episode
├── EpisodeLostError                         the daemon's session of this episode is gone; begin a new episode
└── UnavailableError (ConnectionError)       no daemon responds
    └── RequestTimeoutError (TimeoutError)   one request got no answer in time
"""

from __future__ import annotations

from typing import Final

from pillion_protocol import Error, ErrorCode
from pillion_protocol.default_addresses import own_lane_address
from pillion_protocol.errors import expected_and_actual


class PillionError(Exception):
    """The base of every error that this package raises."""


class InvalidObservationError(PillionError, ValueError):
    """An observation, mask or seed does not fit the session's spec. Nothing was sent."""


class RefusedError(PillionError):
    """The daemon refused one request. The session stays open.

    `code` is one of `pillion_protocol.ErrorCode`, or a newer string. `expected` and `actual` are for a person to read.
    """

    def __init__(self, code: str, message: str, expected: str = "", actual: str = "") -> None:
        super().__init__(f"{code}: {message}{expected_and_actual(expected, actual)}")
        self.code = code
        self.message = message
        self.expected = expected
        self.actual = actual

    @classmethod
    def from_wire(cls, error: Error) -> RefusedError:
        """Returns the exception for an error message of the daemon: of the class for its code, if there is one."""
        return _BY_CODE.get(error.code, cls)(error.code, error.message, error.expected, error.actual)


class EngineRestartingError(RefusedError):
    """The process that runs this episode's version was lost, and is being started again.

    The act was not run, and the episode goes on: send the observation again as long as it is current.
    """


class EngineOutError(RefusedError):
    """The engine of this episode's version failed again and again, and runs no more.

    Sending the act again does not help. A new episode may get another version.
    """


class StateLostError(RefusedError):
    """The recurrent state of this episode was lost with the process of the device that held it.

    The policy would go on as if the episode began now, so the act was not run. Begin a new episode; in a group, mark the rows
    that `actual` names in `episode_start`.
    """


_BY_CODE: Final[dict[str, type[RefusedError]]] = {
    ErrorCode.ENGINE_RESTARTING: EngineRestartingError,
    ErrorCode.ENGINE_OUT: EngineOutError,
    ErrorCode.STATE_LOST: StateLostError,
}


class EpisodeLostError(PillionError):
    """The daemon no longer has this episode: it was restarted, or it ended the session.

    The episode's version and state are lost, so the client does not continue it silently. Begin a new episode in the
    same session.
    """


class UnavailableError(PillionError, ConnectionError):
    """No daemon responds at the address."""


class RequestTimeoutError(UnavailableError, TimeoutError):
    """No answer within `timeout_s`. Whether the request was run is not known; a late answer will be dropped."""


def no_response(address: str, timeout_s: float) -> UnavailableError:
    """Returns the error for a hello without an answer. It says so if the address is this user's default."""
    default = " (where this user's daemon listens by default)" if address == own_lane_address() else ""
    return UnavailableError(f"no response from {address}{default} within {timeout_s:g} s; is pilliond running?")
