"""The role that acts on observations of a given size, and times one copy of as many bytes beside each act. Hot path."""

from __future__ import annotations

import gc
import time
from array import array
from typing import Final

import msgspec
import numpy as np

import pillion
from pillion_bench.errors import BenchError
from pillion_bench.process.worker import Pipe

_OBSERVATIONS: Final = 8
"""Different observations, sent one after the other: a simulator does not send the same memory twice."""

_WARM_UP_ACTS: Final = 50


class FramePlan(msgspec.Struct, frozen=True):
    """The daemon's address, and whether the observations must go through a slot (else in a packet)."""

    address: str
    in_slot: bool


class FrameRequest(msgspec.Struct, frozen=True):
    """Act for so many seconds."""

    seconds: float


class FrameResult(msgspec.Struct, frozen=True):
    """Three int64 for each act, in ns: the round trip less the engine, one copy of an observation, and batching.

    Batching is from admission to the engine; it contains the daemon's own copy.
    """

    added_ns: bytes
    copy_ns: bytes
    batching_ns: bytes


def run(pipe: Pipe) -> None:
    """Acts on each request. Raises `BenchError` if an observation took the other path or got a wrong action."""
    plan = pipe.receive_plan(FramePlan)
    with pillion.connect(plan.address, client_name="pillion-bench") as session, session.begin() as episode:
        while (request := pipe.receive(FrameRequest)) is not None:
            pipe.send(_act_and_copy(episode, session.spec.observation[0].shape, plan.in_slot, request.seconds))


def _act_and_copy(episode: pillion.Episode, shape: list[int], in_slot: bool, seconds: float) -> FrameResult:
    rng = np.random.default_rng(1)
    observations = [rng.integers(0, 256, shape, np.uint8) for _ in range(_OBSERVATIONS)]
    target = np.zeros(shape, np.uint8)
    clock = time.monotonic_ns
    added, copies, batching = array("q"), array("q"), array("q")
    gc.collect()
    gc.disable()
    end_ns = clock() + int(seconds * 1e9)
    number = 0
    while (sent_ns := clock()) < end_ns or number <= _WARM_UP_ACTS:
        observation = observations[number % _OBSERVATIONS]
        action = episode.act(observation)
        round_trip_ns = clock() - sent_ns
        last = episode.last
        if last.observation_in_slot != in_slot or action[0] != observation[0]:
            raise BenchError(
                f"an observation of {shape[0]} bytes took the other path, or got the action of another one"
            )
        began_ns = clock()
        np.copyto(target, observations[(number + 1) % _OBSERVATIONS])
        copy_ns = clock() - began_ns
        number += 1
        if number > _WARM_UP_ACTS:
            added.append(round_trip_ns - last.timings.engine_ns)
            copies.append(copy_ns)
            batching.append(last.timings.dispatched_ns - last.timings.queued_ns)
    gc.enable()
    return FrameResult(added.tobytes(), copies.tobytes(), batching.tobytes())
