"""The roles of a bare doorbell: two processes that ring each other as a daemon and its worker do. Hot path."""

from __future__ import annotations

import select
from typing import Final

import msgspec

from pillion_bench.process.worker import Pipe
from pillion_bench.roles.echo import serve_pings
from pillion_worker.arena import COMPLETED, SUBMITTED, Arena, ArenaLayout
from pillion_worker.doorbell import Doorbell, ring_loop, ring_worker, wait_for_rings
from pillion_worker.tensors import Tensor

LAYOUT: Final = ArenaLayout([Tensor("observation", "float32", [8])], [Tensor("action", "float32", [1])], [], 1, 1)
"""An arena of one small row."""


class DoorbellPlan(msgspec.Struct, frozen=True):
    """The descriptors of an arena of `LAYOUT`, and of one's ends of its two doorbells. The process inherits them."""

    arena: int
    submit: int
    complete: int


def serve(pipe: Pipe) -> None:
    """Answers each ring with a ring, as a worker does, until the other end of the doorbell is closed."""
    plan = pipe.receive_plan(DoorbellPlan)
    cells = Arena(plan.arena, LAYOUT).cells
    pipe.send("ready")
    while wait_for_rings(plan.submit):
        cells[COMPLETED] = cells[SUBMITTED]
        ring_loop(plan.complete)


def ping(pipe: Pipe) -> None:
    """Rings and waits for each answer in an epoll set, as the serving process does."""
    plan = pipe.receive_plan(DoorbellPlan)
    cells = Arena(plan.arena, LAYOUT).cells
    bell = Doorbell(plan.complete)
    with select.epoll() as epoll:
        epoll.register(plan.complete, select.EPOLLIN)
        poll = epoll.poll
        pipe.send("ready")

        def round_trip() -> None:
            cells[SUBMITTED] += 1
            ring_worker(plan.submit)
            poll()
            bell.take()

        serve_pings(pipe, round_trip)
