"""What it adds to an act that its engine runs in a worker, beside a bare doorbell between two processes placed like that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from pillion_bench.limits import ANSWER_S_MAX
from pillion_bench.measurements.engines.daemons import (
    ASLEEP,
    INLINE,
    SPINNING,
    WORKER,
    act_for,
    engine_daemon,
    expect_workers,
)
from pillion_bench.measurements.engines.series import Series, order
from pillion_bench.percentiles import Nanoseconds, nanoseconds
from pillion_bench.process.placement import Placement
from pillion_bench.process.worker import Worker
from pillion_bench.roles.doorbell import LAYOUT, DoorbellPlan
from pillion_bench.roles.echo import PingRequest, PingResult
from pillion_bench.shipped import examples_folder
from pilliond.engine.worker_arena import OwnArena

POLICY: Final = "lunar-lander"

DOORBELL: Final = "doorbell"
KINDS: Final = (INLINE, WORKER, ASLEEP, SPINNING, DOORBELL)
WORKERS: Final = (WORKER, ASLEEP, SPINNING)

Segment = Callable[[float], Nanoseconds]
"""Measures for so many seconds, and returns the round trips."""


def measure_crossing(
    placement: Placement, seconds: float, rounds: int, spin_us: int, advance: Callable[[str], None]
) -> dict[str, Any]:
    """Measures every kind, interleaved; returns the first part of the report of `pillion bench engine`."""
    series = {kind: Series() for kind in KINDS}
    with ExitStack() as stack:
        segments = {kind: stack.enter_context(_acting(kind, placement, spin_us)) for kind in KINDS[:-1]}
        segments[DOORBELL] = stack.enter_context(_ringing(placement))
        for kind in order(KINDS, rounds):
            advance(kind)
            series[kind].segments_ns.append(segments[kind](seconds))
    return _report(series)


@contextmanager
def _acting(kind: str, placement: Placement, spin_us: int) -> Iterator[Segment]:
    with engine_daemon(examples_folder(), POLICY, kind, placement, spin_us) as daemon:
        expect_workers(daemon, 0 if kind == INLINE else 1)
        yield lambda seconds: act_for(daemon, POLICY, placement.server, seconds)


@contextmanager
def _ringing(placement: Placement) -> Iterator[Segment]:
    own = OwnArena(LAYOUT)
    arena, bell, complete = own.for_worker
    with ExitStack() as stack:
        echo = stack.enter_context(
            Worker("doorbell-echo", DoorbellPlan(arena, bell, complete), placement.client, descriptors=own.for_worker)
        )
        # The echo ends when nobody can ring any more.
        stack.callback(own.close)
        ends = (arena, own.submit, complete)
        ping = stack.enter_context(Worker("doorbell-ping", DoorbellPlan(*ends), placement.server, descriptors=ends))
        for worker in (echo, ping):
            worker.receive(str, ANSWER_S_MAX)
        yield lambda seconds: nanoseconds(
            ping.request(PingRequest(seconds), PingResult, seconds + ANSWER_S_MAX).round_trip_ns
        )


def _report(series: dict[str, Series]) -> dict[str, Any]:
    figures = {kind: each.figures() for kind, each in series.items()}
    rounds = {kind: each.p50s_us_of_rounds() for kind, each in series.items()}
    return {
        "n": sum(each["n"] for each in figures.values()),
        **{f"{kind}_us": each for kind, each in figures.items()},
        "added_us": {kind: round(figures[kind]["p50"] - figures[INLINE]["p50"], 2) for kind in WORKERS},
        "added_over_doorbell": {
            kind: added_over_doorbell(*(figures[each]["p50"] for each in (kind, INLINE, DOORBELL))) for kind in WORKERS
        },
        "added_over_doorbell_of_rounds": {
            kind: [
                added_over_doorbell(*p50s) for p50s in zip(rounds[kind], rounds[INLINE], rounds[DOORBELL], strict=True)
            ]
            for kind in WORKERS
        },
        "noise": {kind: each.noise() for kind, each in series.items()},
        "p50_us_of_segments": {kind: each.p50s_us() for kind, each in series.items()},
        "policy": POLICY,
    }


def added_over_doorbell(worker_us: float, inline_us: float, doorbell_us: float) -> float:
    """Returns what a worker adds, as a multiple of a doorbell's round trip."""
    return round((worker_us - inline_us) / doorbell_us, 3) if doorbell_us else 0.0
