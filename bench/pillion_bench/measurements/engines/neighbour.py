"""An inline policy beside another one of the same daemon that keeps a worker busy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from pillion_bench.limits import ANSWER_S_MAX
from pillion_bench.measurements.engines.daemons import act_for, expect_workers, mixed_daemon
from pillion_bench.measurements.engines.policies import POLICY as LOOPING
from pillion_bench.measurements.engines.policies import store_with_looping
from pillion_bench.measurements.engines.series import Series
from pillion_bench.measurements.rounds import Segment, compare_segments
from pillion_bench.percentiles import nanoseconds
from pillion_bench.process.daemon_process import DaemonProcess
from pillion_bench.process.placement import CpuSet, Placement
from pillion_bench.process.worker import Worker
from pillion_bench.roles.steady_driver import SteadyPlan, SteadyResult

POLICY: Final = "lunar-lander"

ALONE, BESIDE = "alone", "beside"
_ROUND: Final = (ALONE, BESIDE, BESIDE, ALONE)

_BUSY_CLIENTS: Final = 2
"""While one run goes on, the other client's act waits: the worker is never idle."""


def measure_neighbour(
    placement: Placement, seconds: float, rounds: int, run_ms: float, advance: Callable[[str], None]
) -> dict[str, Any]:
    """Returns the round trips of one client of the inline policy, with and without the busy worker."""
    series = {ALONE: Series(), BESIDE: Series()}
    segments = []
    runs = 0
    with (
        store_with_looping(run_ms, placement.client) as store,
        mixed_daemon(store, POLICY, LOOPING, placement) as daemon,
    ):
        expect_workers(daemon, 1)
        for kind in _ROUND * rounds:
            advance(f"inline, {kind}" if kind == ALONE else f"inline, {kind} a busy worker")
            if kind == ALONE:
                taken_ns = act_for(daemon, POLICY, placement.server, seconds)
            else:
                with keeping_busy(daemon, placement.client) as busy:
                    taken_ns = act_for(daemon, POLICY, placement.server, seconds)
                    runs += len(nanoseconds(busy().received_ns))
            series[kind].segments_ns.append(taken_ns)
            segments.append(Segment(kind, taken_ns))
    noise, effect = compare_segments(segments)
    figures = {kind: each.figures() for kind, each in series.items()}
    return {
        "policy": POLICY,
        "n": sum(each["n"] for each in figures.values()),
        **{f"{kind}_us": each for kind, each in figures.items()},
        "beside_over_alone": {name: round(1 + share, 3) for name, share in effect.items()},
        "noise": noise,
        "busy_acts": runs,
        "busy_run_ms": run_ms,
    }


@contextmanager
def keeping_busy(daemon: DaemonProcess, cpus: CpuSet | None) -> Iterator[Callable[[], SteadyResult]]:
    """Keeps the looping policy busy inside the block. Yields a function that stops it and returns what it did."""
    with Worker("steady", SteadyPlan(daemon.address, LOOPING, _BUSY_CLIENTS), cpus) as busy:
        busy.receive(str, ANSWER_S_MAX)
        yield lambda: busy.request("stop", SteadyResult, ANSWER_S_MAX)
