"""The stopwatch: measures how long the runs of an engine take, apart from what else the host does meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Final

from pillion_worker.buckets import buckets_for
from pilliond.engine.interface import Engine
from pilliond.limits import MEASURED_NS_MAX, MEASURED_RUNS_MAX

_SPANS: Final = 5
"""A p99 is the median of as many: disturbances that fall into two of them do not count."""


def clock_for(threads: int) -> Callable[[], int]:
    """Returns the clock to measure runs of that many threads with, in ns.

    One thread is measured by its CPU time: on a busy host another process takes the CPU for a millisecond at a time, which
    says nothing about a policy of 10 µs. With more threads there is only the time that passes.
    """
    return time.thread_time_ns if threads == 1 else time.monotonic_ns


def measure(engine: Engine, clock: Callable[[], int]) -> dict[int, tuple[int, int]]:
    """Returns p50 and p99 of a run of each bucket of rows, the fewest rows first, in ns of `clock`. Raises `EngineError`.

    The engine must be warm. It runs on what its memory holds, and leaves outputs there.
    """
    return {rows: _quantiles(_runs(engine.runs[rows], clock)) for rows in buckets_for(len(engine.runs) - 1)}


def measure_until(engine: Engine, clock: Callable[[], int], p99_ns_max: float) -> dict[int, tuple[int, int]]:
    """As `measure`, but the most rows first, and only until a bucket's p99 is not below `p99_ns_max`.

    Whoever only asks whether every bucket is fast need not wait for the others: the first one is nearly always the slowest.
    """
    measured = {}
    for rows in reversed(buckets_for(len(engine.runs) - 1)):
        measured[rows] = _quantiles(_runs(engine.runs[rows], clock))
        if measured[rows][1] >= p99_ns_max:
            break
    return measured


def _runs(run: Callable[[], None], clock: Callable[[], int]) -> list[int]:
    """Times of runs, oldest first: at least one for each span."""
    times: list[int] = []
    began_ns = before_ns = clock()
    while len(times) < _SPANS or (before_ns - began_ns < MEASURED_NS_MAX and len(times) < MEASURED_RUNS_MAX):
        run()
        after_ns = clock()
        times.append(after_ns - before_ns)
        before_ns = after_ns
    return times


def _quantiles(times: list[int]) -> tuple[int, int]:
    length = len(times) // _SPANS
    spans = [sorted(times[first : first + length]) for first in range(0, length * _SPANS, length)]
    p50, p99 = median(times), median(span[length * 99 // 100] for span in spans)
    # Of six to nine runs the last ones are in no span: a p99 of the others may be less than the p50 of all.
    return round(p50), round(max(p50, p99))
