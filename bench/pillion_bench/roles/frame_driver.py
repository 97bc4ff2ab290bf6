"""The role that sends one observation after another of a given size, and copies as many bytes beside it. Hot path."""

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
"""Different ones, in turn: a simulator does not send the same memory twice."""

_WARM_UP_ACTS: Final = 50


class FramePlan(msgspec.Struct, frozen=True):
    """Where the daemon is, and whether the observations must travel in a slot."""

    address: str
    in_slot: bool


class FrameOrder(msgspec.Struct, frozen=True):
    """How long to act."""

    seconds: float


class FrameResult(msgspec.Struct, frozen=True):
    """In ns, as int64: of each act the round trip without the engine, and of as many copies of an observation each."""

    added_ns: bytes
    copy_ns: bytes


def run(pipe: Pipe) -> None:
    """Acts when told. Raises `BenchError` where an observation took the other path, or an action is not its first byte."""
    plan = pipe.hear(FramePlan)
    if plan is None:
        raise BenchError("the bench went before it said what to do")
    with pillion.connect(plan.address, client_name="pillion-bench") as session, session.begin() as episode:
        while (order := pipe.hear(FrameOrder)) is not None:
            pipe.tell(_act_and_copy(episode, session.spec.observation[0].shape, plan.in_slot, order.seconds))


def _act_and_copy(episode: pillion.Episode, shape: list[int], in_slot: bool, seconds: float) -> FrameResult:
    rng = np.random.default_rng(1)
    observations = [rng.integers(0, 256, shape, np.uint8) for _ in range(_OBSERVATIONS)]
    target = np.zeros(shape, np.uint8)
    clock = time.monotonic_ns
    added, copies = array("q"), array("q")
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
            raise BenchError(f"an observation of {shape[0]} bytes took the other path, or was answered for another one")
        began_ns = clock()
        np.copyto(target, observations[(number + 1) % _OBSERVATIONS])
        copy_ns = clock() - began_ns
        number += 1
        if number > _WARM_UP_ACTS:
            added.append(round_trip_ns - last.timings.engine_ns)
            copies.append(copy_ns)
    gc.enable()
    return FrameResult(added.tobytes(), copies.tobytes())
