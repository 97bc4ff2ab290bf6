"""What can go wrong in the bench, by culprit. Each class has its exit code.

BenchError
├── PlacementError         (64) the caller's: this host cannot place the processes as asked
├── BadOptionError         (64) the caller's: options that exclude each other, or do not fit this daemon
├── RecordingError         (65) a file is not a recording, or not one of the served policy
├── ReportError            (65) a file is not a report of `pillion bench compare`
├── PlayError              (69) the environment cannot be made, or does not fit the policy
├── DaemonStartError       (the daemon's) the daemon did not start
├── PeersMissingError      (69) a requested system cannot be measured on this host
├── PeerError              (69) a peer's server did not start
├── WorkerError            (70, or the worker's) a worker process of the bench failed
├── ComparisonError        (1) a compared system failed or answered wrongly
└── ActionMismatchError    (1) the daemon returned another action than the recorded one
"""

from __future__ import annotations

import os


class BenchError(Exception):
    """The bench cannot continue, or found a wrong answer."""

    exit_code = os.EX_SOFTWARE


class PlacementError(BenchError):
    """This host cannot place the processes as asked."""

    exit_code = os.EX_USAGE


class BadOptionError(BenchError):
    """Options exclude each other, or do not fit this daemon."""

    exit_code = os.EX_USAGE


class RecordingError(BenchError):
    """A file is not a recording, or not one of the served policy."""

    exit_code = os.EX_DATAERR


class ReportError(BenchError):
    """A file is not a report of `pillion bench compare`."""

    exit_code = os.EX_DATAERR


class PlayError(BenchError):
    """The environment cannot be made, or does not fit the policy."""

    exit_code = os.EX_UNAVAILABLE


class DaemonStartError(BenchError):
    """The daemon did not start. The message is the last line of its log, the exit code its own."""

    def __init__(self, message: str, exit_code: int = os.EX_UNAVAILABLE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class PeersMissingError(BenchError):
    """A requested system cannot be measured on this host."""

    exit_code = os.EX_UNAVAILABLE


class PeerError(BenchError):
    """A peer's server did not start. The message has the end of its log."""

    exit_code = os.EX_UNAVAILABLE


class WorkerError(BenchError):
    """A worker process of the bench failed. Message and exit code are the worker's where it reported them."""

    def __init__(self, message: str, exit_code: int = os.EX_SOFTWARE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ComparisonError(BenchError):
    """A compared system failed or answered wrongly. Its figures are withheld, and the report has the reason."""

    exit_code = 1


class ActionMismatchError(BenchError):
    """The daemon returned another action than the recorded one."""

    exit_code = 1
