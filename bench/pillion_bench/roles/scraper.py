"""The role of an operator: scrapes `/metrics` and `/health` at a fixed rate over kept connections."""

from __future__ import annotations

import http.client
import os
import socket
import time
from typing import Final

import msgspec

from pillion_bench.limits import ADMIN_ANSWER_S_MAX
from pillion_bench.process.worker import Pipe

PATHS: Final = ("/metrics", "/health")


class ScrapePlan(msgspec.Struct, frozen=True):
    """The path of the admin port's Unix socket, and the scrapes per second."""

    path: str
    per_second: int


class ScrapeRequest(msgspec.Struct, frozen=True):
    """Scrape until the next message."""


class ScrapeResult(msgspec.Struct, frozen=True):
    """The number of answers of each path, their bytes, and how many had another status than 200."""

    answers: dict[str, int]
    answered_bytes: int
    refused: int


class AdminConnection:
    """One kept HTTP connection to an admin port, and the counts of its answers."""

    def __init__(self, path: str) -> None:
        self._http = _UnixHttp(path)
        self.answers = dict.fromkeys(PATHS, 0)
        self.answered_bytes = 0
        self.refused = 0

    def get(self, path: str) -> None:
        """Sends one GET and counts the answer."""
        self._http.request("GET", path)
        response = self._http.getresponse()
        self.answered_bytes += len(response.read())
        self.answers[path] += 1
        self.refused += response.status != http.client.OK

    def close(self) -> None:
        """Closes the connection."""
        self._http.close()


def run(pipe: Pipe) -> None:
    """Scrapes on request and returns the counts."""
    # The scraper must not compete with the clients that are measured: it gets only the CPU time that they leave.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    plan = pipe.receive_plan(ScrapePlan)
    pipe.send("ready")
    while pipe.receive(ScrapeRequest) is not None:
        connection = AdminConnection(plan.path)
        _scrape(pipe, connection, 1.0 / plan.per_second)
        connection.close()
        pipe.send(ScrapeResult(connection.answers, connection.answered_bytes, connection.refused))


def _scrape(pipe: Pipe, connection: AdminConnection, period_s: float) -> None:
    due_s = time.monotonic()
    while not pipe.is_readable(max(0.0, due_s - time.monotonic())):
        for path in PATHS:
            connection.get(path)
        due_s += period_s
    pipe.receive(str)


class _UnixHttp(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ADMIN_ANSWER_S_MAX)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(ADMIN_ANSWER_S_MAX)
        self.sock.connect(self._path)
