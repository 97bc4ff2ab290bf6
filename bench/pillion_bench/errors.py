"""What can go wrong in the bench, by culprit; each carries its exit code.

BenchError
├── PlacementError         (64) the caller's: this host cannot place the processes so
├── BadOptionError         (64) the caller's: options that do not go together, or not with this daemon
├── RecordingError         (65) a file is no recording, or not one of what is served
├── PlayError              (69) the environment cannot be made or played
├── DaemonStartError       (its own) the daemon did not come up
├── PeersMissingError      (69) a contestant that was named cannot be measured here
├── PeerError              (69) a peer's server did not come up
├── ReportError            (65) a file is no report of `pillion bench compare`
├── WorkerError            (70, or its own) a process of the bench ended before its work did
├── ContestError            (1) a contestant could not be measured, or answered wrongly
└── ActionMismatchError     (1) the daemon gave another action than the recorded one
"""

from __future__ import annotations

import os


class BenchError(Exception):
    """A bench cannot go on, or found what it looks for."""

    exit_code = os.EX_SOFTWARE


class PlacementError(BenchError):
    """This host cannot place the processes so."""

    exit_code = os.EX_USAGE


class BadOptionError(BenchError):
    """Options that do not go together, or not with this daemon."""

    exit_code = os.EX_USAGE


class RecordingError(BenchError):
    """A file is no recording, or not one of the policy that is served."""

    exit_code = os.EX_DATAERR


class PlayError(BenchError):
    """The environment cannot be made, or does not fit the policy."""

    exit_code = os.EX_UNAVAILABLE


class DaemonStartError(BenchError):
    """The daemon did not come up; the message is its own last word."""

    def __init__(self, message: str, exit_code: int = os.EX_UNAVAILABLE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class PeersMissingError(BenchError):
    """A contestant that was named cannot be measured here."""

    exit_code = os.EX_UNAVAILABLE


class PeerError(BenchError):
    """A peer's server did not come up; the message is its own last word."""

    exit_code = os.EX_UNAVAILABLE


class ReportError(BenchError):
    """A file is no report of `pillion bench compare`."""

    exit_code = os.EX_DATAERR


class ContestError(BenchError):
    """A contestant could not be measured, or answered wrongly: its figures are withheld, and the comparison says so."""

    exit_code = 1


class WorkerError(BenchError):
    """A process of the bench ended before its work did; the message and the code are its own where it gave them."""

    def __init__(self, message: str, exit_code: int = os.EX_SOFTWARE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ActionMismatchError(BenchError):
    """The daemon gave another action than the recorded one."""

    exit_code = 1
