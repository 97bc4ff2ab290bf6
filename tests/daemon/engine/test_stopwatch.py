"""Service times are those of the engine, not of what else the host does meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import chain, repeat

import pytest

from pillion_worker.buckets import buckets_for
from pilliond.engine.stopwatch import clock_for, measure, measure_until
from pilliond.limits import MEASURED_NS_MAX, MEASURED_RUNS_MAX
from tests.daemon.support.fakes import Clock, CountingEngine


class SlowEngine(CountingEngine):
    """An engine whose runs take the given times of a clock, whatever their rows."""

    def __init__(self, clock: Clock, rows_max: int, times_ns: Callable[[], Iterable[int]]) -> None:
        super().__init__(rows_max)
        self.counts = dict.fromkeys(range(rows_max + 1), 0)
        left = {rows: iter(times_ns()) for rows in self.counts}

        def run_of(rows: int) -> Callable[[], None]:
            def run() -> None:
                self.counts[rows] += 1
                clock.now_ns += next(left[rows])

            return run

        self.runs = [run_of(rows) for rows in self.counts]


def test_every_bucket_is_measured() -> None:
    clock = Clock()
    engine = SlowEngine(clock, 24, lambda: repeat(10_000))
    assert measure(engine, clock) == dict.fromkeys(buckets_for(24), (10_000, 10_000))
    assert {rows for rows, count in engine.counts.items() if count} == set(buckets_for(24))
    assert engine.counts[24] == MEASURED_RUNS_MAX


def test_the_first_slow_bucket_ends_the_question_whether_all_are_fast() -> None:
    clock = Clock()
    engine = SlowEngine(clock, 24, lambda: repeat(10_000))

    def run_slowly() -> None:
        clock.now_ns += 200_000

    engine.runs[8] = run_slowly
    assert measure_until(engine, clock, 200_000) == {24: (10_000, 10_000), 16: (10_000, 10_000), 8: (200_000, 200_000)}
    assert measure_until(engine, clock, 200_001) == measure(engine, clock)


def test_a_slow_engine_gets_few_runs() -> None:
    clock = Clock()
    engine = SlowEngine(clock, 1, lambda: repeat(MEASURED_NS_MAX))
    assert measure(engine, clock) == {1: (MEASURED_NS_MAX, MEASURED_NS_MAX)}
    assert engine.counts[1] == 5


def test_the_p99_is_that_of_runs_that_happen_again_and_again() -> None:
    clock = Clock()
    engine = SlowEngine(clock, 1, lambda: chain.from_iterable(repeat([300_000, 300_000, *[10_000] * 98])))
    assert measure(engine, clock)[1] == (10_000, 300_000)


def test_the_p99_of_few_runs_is_not_below_their_p50() -> None:
    clock = Clock()
    quick, slow = MEASURED_NS_MAX // 20, MEASURED_NS_MAX // 4
    engine = SlowEngine(clock, 1, lambda: chain(repeat(quick, 3), repeat(slow)))
    assert measure(engine, clock)[1] == (slow, slow)
    assert engine.counts[1] == 7


@pytest.mark.parametrize("first", [0, 190, 500, 870])
def test_a_disturbance_does_not_count(first: int) -> None:
    clock = Clock()
    engine = SlowEngine(clock, 1, lambda: chain(repeat(10_000, first), repeat(4_000_000, 5), repeat(10_000)))
    assert measure(engine, clock)[1] == (10_000, 10_000)


def test_one_thread_is_measured_by_its_own_cpu_time() -> None:
    clock = clock_for(1)
    before_ns, wall_ns = clock(), time.monotonic_ns()
    time.sleep(0.05)
    assert clock() - before_ns < time.monotonic_ns() - wall_ns
    assert clock_for(2) is time.monotonic_ns
