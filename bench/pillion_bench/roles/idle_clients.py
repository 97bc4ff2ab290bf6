"""The role of clients that are connected and send nothing."""

from __future__ import annotations

import resource
from contextlib import ExitStack

import msgspec

import pillion
from pillion_bench.process.worker import Pipe


class IdlePlan(msgspec.Struct, frozen=True):
    """The daemon's address and the number of sessions. Each has its own connection and one episode."""

    address: str
    sessions: int


def run(pipe: Pipe) -> None:
    """Connects all sessions, reports it, and keeps them open until the parent closes."""
    plan = pipe.receive_plan(IdlePlan)
    # Each connection needs descriptors, and a thousand of them exceed the usual soft limit.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ExitStack() as stack:
        for _ in range(plan.sessions):
            stack.enter_context(pillion.connect(plan.address, client_name="pillion-bench")).begin()
        pipe.send("ready")
        pipe.receive(str)
