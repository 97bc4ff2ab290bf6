"""The role of clients that are connected and say nothing."""

from __future__ import annotations

import resource
from contextlib import ExitStack

import msgspec

import pillion
from pillion_bench.errors import BenchError
from pillion_bench.process.worker import Pipe


class SilentPlan(msgspec.Struct, frozen=True):
    """Where they connect to, and how many there are; each has a session, an episode and a connection of its own."""

    address: str
    sessions: int


def run(pipe: Pipe) -> None:
    """Connects them all, and keeps still until the end of the talk."""
    plan = pipe.hear(SilentPlan)
    if plan is None:
        raise BenchError("the bench went before it said what to do")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ExitStack() as stack:
        for _ in range(plan.sessions):
            stack.enter_context(pillion.connect(plan.address, client_name="pillion-bench")).begin()
        pipe.tell("ready")
        pipe.hear(str)
