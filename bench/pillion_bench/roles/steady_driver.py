"""The role that acts in a closed loop until the bench stops it, and keeps the times of every act. Hot path."""

from __future__ import annotations

import gc
import time
from array import array
from collections import Counter
from typing import Final

import msgspec

from pillion_bench.process.worker import Pipe
from pillion_bench.recordings.observations import real_observations
from pillion_bench.roles.virtual_users import VirtualUserPool
from pillion_protocol import Action, Error

_OBSERVATIONS: Final = 64
"""Different observations, sent one after the other."""

_ANSWERS_PER_POLL: Final = 16
"""The pipe is polled for the stop message once in this many answers. A slow policy gives few."""


class SteadyPlan(msgspec.Struct, frozen=True):
    """The daemon's address, the policy, and the sessions. Each has its own connection and one episode of one row."""

    address: str
    policy: str
    sessions: int


class SteadyResult(msgspec.Struct, frozen=True):
    """Three int64 for each action, in ns of CLOCK_MONOTONIC: when it was sent, when it arrived, and when its batch was
    dispatched. A missing answer ends the bench.
    """

    sent_ns: bytes
    received_ns: bytes
    dispatched_ns: bytes
    refused: dict[str, int]
    """How many acts were answered with an error, by its code."""


def run(pipe: Pipe) -> None:
    """Opens the sessions, reports it, and acts until the next message."""
    plan = pipe.receive_plan(SteadyPlan)
    with VirtualUserPool(plan.address, plan.sessions, plan.sessions, plan.policy) as pool:
        pool.open()
        observations = real_observations(plan.policy, pool.users[0].conversation.spec)
        acts = [observations.frames(number, 1) for number in range(_OBSERVATIONS)]
        pool.begin([[seed] for seed in range(plan.sessions)])
        pipe.send("ready")
        gc.collect()
        gc.disable()
        result = _act(pool, acts, pipe)
        pipe.receive(str)
        pipe.send(result)


def _act(pool: VirtualUserPool, acts: list[list[bytes | memoryview]], pipe: Pipe) -> SteadyResult:
    """Keeps one act in flight for every session until a message arrives, then waits for the answers still due."""
    clock = time.monotonic_ns
    sent, received, dispatched = array("q"), array("q"), array("q")
    refused: Counter[str] = Counter()
    for user in pool.users:
        user.act(acts[user.index % _OBSERVATIONS])
    owed = len(pool.users)
    number = 0
    stopping = False
    while owed:
        user, message, _ = pool.receive()
        if type(message) is Action:
            sent.append(user.sent_ns)
            received.append(clock())
            dispatched.append(message.received_ns + message.dispatched_ns)
        else:
            assert isinstance(message, Error)
            refused[message.code] += 1
        number += 1
        if not stopping and number % _ANSWERS_PER_POLL == 0:
            stopping = pipe.is_readable(0)
        if stopping:
            owed -= 1
        else:
            user.act(acts[number % _OBSERVATIONS])
    return SteadyResult(sent.tobytes(), received.tobytes(), dispatched.tobytes(), dict(refused))
