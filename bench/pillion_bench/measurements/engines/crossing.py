"""What it adds to an act that its engine runs in a worker, beside a bare doorbell between two processes placed like that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
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
from pillion_bench.measurements.engines.subjects import ONNX, Subject
from pillion_bench.percentiles import Nanoseconds, nanoseconds
from pillion_bench.process.placement import Placement
from pillion_bench.process.worker import Worker
from pillion_bench.roles.bare_engine import EnginePlan
from pillion_bench.roles.doorbell import LAYOUT, DoorbellPlan
from pillion_bench.roles.echo import PingRequest, PingResult
from pilliond.engine.worker_arena import OwnArena

BARE: Final = "bare"
"""The bare torch call on the client's CPU, in place of an inline engine: only ONNX runs inline."""

DOORBELL: Final = "doorbell"
WORKERS: Final = (WORKER, ASLEEP, SPINNING)

Segment = Callable[[float], Nanoseconds]
"""Measures for so many seconds, and returns the round trips."""


def kinds_of(engine: str) -> tuple[str, ...]:
    """Returns what is measured for an engine. The first kind is what the workers are compared with."""
    return (INLINE if engine == ONNX else BARE, *WORKERS, DOORBELL)


def measure_crossing(
    subject: Subject, placement: Placement, seconds: float, rounds: int, spin_us: int, advance: Callable[[str], None]
) -> dict[str, Any]:
    """Measures every kind, interleaved; returns the first part of the report of `pillion bench engine`."""
    kinds = kinds_of(subject.engine)
    series = {kind: Series() for kind in kinds}
    with ExitStack() as stack:
        segments = {kind: stack.enter_context(_segment_of(kind, subject, placement, spin_us)) for kind in kinds}
        for kind in order(kinds, rounds):
            advance(kind)
            series[kind].segments_ns.append(segments[kind](seconds))
    return {"engine": subject.engine, **_report(series, kinds[0]), "policy": subject.small}


def _segment_of(kind: str, subject: Subject, placement: Placement, spin_us: int) -> AbstractContextManager[Segment]:
    if kind == DOORBELL:
        return _ringing(placement)
    return _calling(subject, placement) if kind == BARE else _acting(kind, subject, placement, spin_us)


@contextmanager
def _acting(kind: str, subject: Subject, placement: Placement, spin_us: int) -> Iterator[Segment]:
    with engine_daemon(subject.store, subject.small, kind, placement, spin_us, more=subject.settings) as daemon:
        expect_workers(daemon, 0 if kind == INLINE else 1)
        yield lambda seconds: act_for(daemon, subject.small, placement.server, seconds)


@contextmanager
def _calling(subject: Subject, placement: Placement) -> Iterator[Segment]:
    plan = EnginePlan(str(subject.store), subject.small, 1, subject.engine)
    with Worker("engine", plan, placement.server) as engine:
        engine.receive(str, ANSWER_S_MAX)
        yield lambda seconds: nanoseconds(
            engine.request(PingRequest(seconds), PingResult, seconds + ANSWER_S_MAX).round_trip_ns
        )


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


def _report(series: dict[str, Series], base: str) -> dict[str, Any]:
    figures = {kind: each.figures() for kind, each in series.items()}
    rounds = {kind: each.p50s_us_of_rounds() for kind, each in series.items()}
    return {
        "n": sum(each["n"] for each in figures.values()),
        **{f"{kind}_us": each for kind, each in figures.items()},
        "added_us": {kind: round(figures[kind]["p50"] - figures[base]["p50"], 2) for kind in WORKERS},
        "added_over_doorbell": {
            kind: added_over_doorbell(*(figures[each]["p50"] for each in (kind, base, DOORBELL))) for kind in WORKERS
        },
        "added_over_doorbell_of_rounds": {
            kind: [
                added_over_doorbell(*p50s) for p50s in zip(rounds[kind], rounds[base], rounds[DOORBELL], strict=True)
            ]
            for kind in WORKERS
        },
        "noise": {kind: each.noise() for kind, each in series.items()},
        "p50_us_of_segments": {kind: each.p50s_us() for kind, each in series.items()},
    }


def added_over_doorbell(worker_us: float, base_us: float, doorbell_us: float) -> float:
    """Returns what a worker adds, as a multiple of a doorbell's round trip."""
    return round((worker_us - base_us) / doorbell_us, 3) if doorbell_us else 0.0
