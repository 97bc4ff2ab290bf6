"""The role of an operator: so many scrapes of `/metrics` and health checks a second, on time, over kept connections."""

from __future__ import annotations

import http.client
import os
import socket
import time
from typing import Final

import msgspec

from pillion_bench.errors import BenchError
from pillion_bench.process.worker import Pipe

PATHS: Final = ("/metrics", "/health")

_ANSWER_S_MAX: Final = 10.0


class ScrapePlan(msgspec.Struct, frozen=True):
    """Whose admin port (a Unix socket), and how often."""

    path: str
    per_second: int


class ScrapeOrder(msgspec.Struct, frozen=True):
    """Begin, until the next message."""


class ScrapeResult(msgspec.Struct, frozen=True):
    """How many answers came of each path, their bytes, and those that were not 200."""

    answers: dict[str, int]
    answered_bytes: int
    refused: int


class Operator:
    """One kept HTTP connection to an admin port."""

    def __init__(self, path: str) -> None:
        self._http = _UnixHttp(path)
        self.answers = dict.fromkeys(PATHS, 0)
        self.answered_bytes = 0
        self.refused = 0

    def ask(self, path: str) -> None:
        """One GET."""
        self._http.request("GET", path)
        response = self._http.getresponse()
        self.answered_bytes += len(response.read())
        self.answers[path] += 1
        self.refused += response.status != http.client.OK

    def close(self) -> None:
        self._http.close()


def run(pipe: Pipe) -> None:
    """Asks while it is told to, and gives what was answered."""
    # Who measures is not disturbed by whom we imitate: this process takes what the others of its CPU leave.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    plan = pipe.hear(ScrapePlan)
    if plan is None:
        raise BenchError("the bench went before it said what to do")
    pipe.tell("ready")
    while pipe.hear(ScrapeOrder) is not None:
        operator = Operator(plan.path)
        _ask_on_time(pipe, operator, 1.0 / plan.per_second)
        operator.close()
        pipe.tell(ScrapeResult(operator.answers, operator.answered_bytes, operator.refused))


def _ask_on_time(pipe: Pipe, operator: Operator, period_s: float) -> None:
    due_s = time.monotonic()
    while not pipe.is_readable(max(0.0, due_s - time.monotonic())):
        for path in PATHS:
            operator.ask(path)
        due_s += period_s
    pipe.hear(str)


class _UnixHttp(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_ANSWER_S_MAX)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_ANSWER_S_MAX)
        self.sock.connect(self._path)
