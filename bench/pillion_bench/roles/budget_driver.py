"""The role that sends acts with a budget, and checks each answer against it. Hot path."""

from __future__ import annotations

import gc
import time
from array import array
from collections import Counter

import msgspec

from pillion_bench.process.worker import Pipe
from pillion_bench.recordings.observations import real_observations
from pillion_bench.roles.virtual_users import VirtualUserPool
from pillion_protocol import Action, Error


class BudgetPlan(msgspec.Struct, frozen=True):
    """The daemon's address and the policy; how many acts to send, their budget, and the pause after each answer."""

    address: str
    policy: str
    acts: int
    budget_us: int
    pause_s: float


class BudgetResult(msgspec.Struct, frozen=True):
    """What became of the acts. Every act has one answer; a missing one ends the bench."""

    answered: int
    answered_late: int
    """Of those, how many finished after their budget, as the daemon says."""
    dispatched_late: int
    """Of those, how many went to the engine after their budget."""
    refused: dict[str, int]
    """How many were answered with an error, by its code."""
    refusal_ns: bytes
    """int64 for each of them, in ns: from the end of its budget to its arrival. Negative if it arrived before."""


def run(pipe: Pipe) -> None:
    """Opens a session, reports it, and sends all acts on request."""
    plan = pipe.receive_plan(BudgetPlan)
    with VirtualUserPool(plan.address, 1, 1, plan.policy) as pool:
        pool.open()
        pool.begin([[1]])
        pipe.send("ready")
        if pipe.receive(str) is not None:
            pipe.send(_send_all(pool, plan))


def _send_all(pool: VirtualUserPool, plan: BudgetPlan) -> BudgetResult:
    (user,) = pool.users
    observations = real_observations(plan.policy, user.conversation.spec)
    frames = observations.frames(0, 1)
    clock = time.monotonic_ns
    budget_ns = plan.budget_us * 1_000
    refusals = array("q")
    refused: Counter[str] = Counter()
    answered = answered_late = dispatched_late = 0
    gc.collect()
    gc.disable()
    for _ in range(plan.acts):
        user.act(frames, plan.budget_us)
        _, message, _ = pool.receive()
        end_ns = user.sent_ns + budget_ns
        if type(message) is Action:
            answered += 1
            answered_late += message.late_us > 0
            dispatched_late += message.received_ns + message.dispatched_ns > end_ns
        else:
            refusals.append(clock() - end_ns)
            assert isinstance(message, Error)
            refused[message.code] += 1
        if plan.pause_s:
            time.sleep(plan.pause_s)
    gc.enable()
    return BudgetResult(answered, answered_late, dispatched_late, dict(refused), refusals.tobytes())
