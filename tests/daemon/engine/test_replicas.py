"""Which of several replicas a batch goes to: real engines and arenas, a test in place of their workers, a clock that it sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from pillion_worker.buckets import buckets_for
from pilliond.engine.batch_memory import BatchMemory
from pilliond.engine.replicas import ReplicaEngine, ReplicaPace
from pilliond.engine.service_time import ServiceTimes
from pilliond.engine.worker import WorkerEngine
from tests.daemon.support.fakes import Clock
from tests.daemon.support.simulated_worker import ROWS_MAX, SimulatedWorker

US = 1_000


class Farm:
    """Replicas with simulated workers, and what a serving loop does with them."""

    def __init__(self, *workers: SimulatedWorker, clock: Clock) -> None:
        self.workers, self.clock = workers, clock
        self.engine = ReplicaEngine([worker.engine for worker in workers], clock)
        for worker in workers:
            worker.engine.on_ready = self.engine.became_ready
            worker.engine.on_completed = self._complete
            worker.become_ready()

    def _complete(self, engine: WorkerEngine, memory: BatchMemory, *answer: Any) -> None:
        *_, started_ns, finished_ns, _ = answer
        self.engine.ran(memory, finished_ns - started_ns)
        self.engine.collect(memory)
        self.engine.release(memory)

    def submit(self, rows: int = 1) -> int:
        """Submits a batch; returns the number of the worker that got it."""
        memory = self.engine.choose(rows)
        self.engine.submit(memory, rows)
        (number,) = [number for number, worker in enumerate(self.workers) if memory in worker.engine.memories]
        return number

    def advance(self) -> None:
        """Lets time pass until the next batch is done."""
        worker = min(self.workers, key=lambda worker: worker.due_ns)
        self.clock.now_ns = worker.due_ns
        worker.complete()

    def keep_busy(self, batches: int, rows: int = 1) -> Counter[int]:
        """Submits so many batches, each as soon as a memory is free; returns how many each worker got."""
        shares: Counter[int] = Counter()
        for _ in range(batches):
            while not self.engine.free:
                self.advance()
            shares[self.submit(rows)] += 1
        return shares

    def close(self) -> None:
        for worker in self.workers:
            worker.engine.close()


@pytest.fixture
def farms() -> Iterator[list[Farm]]:
    made: list[Farm] = []
    yield made
    for farm in made:
        farm.close()


def make(farms: list[Farm], paces: Sequence[tuple[int, int]], depth: int = 1) -> Farm:
    clock = Clock()
    clock.now_ns = 10**9
    workers = [SimulatedWorker(clock, fixed_ns, row_ns, depth) for fixed_ns, row_ns in paces]
    farms.append(Farm(*workers, clock=clock))
    return farms[-1]


def test_a_batch_that_meets_no_other_goes_to_the_quicker_one(farms: list[Farm]) -> None:
    farm = make(farms, [(200 * US, 0), (100 * US, 0)])
    for _ in range(5):
        assert farm.submit() == 1
        farm.advance()


def test_of_two_batches_at_once_the_other_one_gets_the_second(farms: list[Farm]) -> None:
    farm = make(farms, [(200 * US, 0), (100 * US, 0)])
    assert [farm.submit(), farm.submit()] == [1, 0]
    assert farm.engine.free == []


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_one_that_is_twice_as_slow_gets_a_third(farms: list[Farm], depth: int) -> None:
    farm = make(farms, [(100 * US, 0), (200 * US, 0)], depth)
    shares = farm.keep_busy(300)
    assert 90 <= shares[1] <= 110, shares


def test_the_one_that_finishes_first_depends_on_the_rows(farms: list[Farm]) -> None:
    """As a CPU is quicker for a row, and a device for many."""
    farm = make(farms, [(10 * US, 50 * US), (150 * US, 1 * US)])
    for rows, expected in [(1, 0), (8, 1), (2, 0), (4, 1)]:
        assert farm.submit(rows) == expected
        farm.advance()


def test_a_batch_waits_behind_others_where_it_is_done_sooner_for_that(farms: list[Farm]) -> None:
    farm = make(farms, [(100 * US, 0), (350 * US, 0)], depth=4)
    # 100, 200, 300 µs from now on the first; 350 on the second, before 400 on the first.
    assert [farm.submit() for _ in range(4)] == [0, 0, 0, 1]


def test_time_that_has_passed_since_a_run_began_counts(farms: list[Farm]) -> None:
    farm = make(farms, [(300 * US, 0), (200 * US, 0)], depth=2)
    assert farm.submit() == 1
    farm.clock.now_ns += 50 * US
    # 150 µs of the run are left, and 200 for the next: 350 are more than 300.
    assert farm.submit() == 0
    farm.clock.now_ns += 100 * US
    assert [replica.free_ns(farm.clock.now_ns) - farm.clock.now_ns for replica in farm.engine.replicas] == [
        50 * US,
        0,
    ], "by half of what was measured, as fast runs are not known yet"


def test_one_that_gets_slower_is_taken_less_after_a_few_runs(farms: list[Farm]) -> None:
    farm = make(farms, [(100 * US, 0), (110 * US, 0)])
    assert farm.submit() == 0
    farm.advance()
    farm.workers[0].fixed_ns = 400 * US
    taken = []
    for _ in range(10):
        taken.append(farm.submit())
        farm.advance()
    assert taken[:1] == [0]
    assert taken[-5:] == [1] * 5


def test_one_odd_run_does_not_turn_the_choice_for_long() -> None:
    times = ServiceTimes([1])
    times.learn(1, 100 * US, 100 * US)
    pace = ReplicaPace(times)
    assert pace.expected_ns(1) == 100 * US
    pace.observe(1, 10**9)
    assert pace.expected_ns(1) < 200 * US
    for _ in range(40):
        pace.observe(1, 50 * US)
    assert 45 * US < pace.expected_ns(1) < 55 * US


def test_a_lost_replica_gets_no_batch_and_its_replacement_does(farms: list[Farm]) -> None:
    farm = make(farms, [(100 * US, 0), (100 * US, 0)])
    engine, (lost, other) = farm.engine, farm.workers
    first = engine.choose(1)
    engine.submit(first, 1)
    lost.engine.lose("a test says so")
    engine.release(first)
    assert engine.is_ready
    assert engine.free == other.engine.free
    assert farm.submit() == 1
    lost.become_ready()
    assert farm.submit() == 0
    # What belonged to the worker before is nobody's.
    engine.release(first)
    assert engine.free == []
    for worker in farm.workers:
        worker.engine.lose("a test says so")
    assert not engine.is_ready


def test_its_service_times_are_of_the_quickest_and_the_slowest(farms: list[Farm]) -> None:
    farm = make(farms, [(100 * US, 0), (400 * US, 0)])
    assert farm.engine.service.by_bucket() == [(rows, 50 * US, 400 * US) for rows in buckets_for(ROWS_MAX)]
    farm.engine.service.observe(1, 20 * US)
    farm.workers[1].engine.lose("a test says so")
    farm.workers[1].become_ready()
    assert farm.engine.service.fast_ns(1) == 20 * US


def test_it_describes_each_and_all_together(farms: list[Farm]) -> None:
    farm = make(farms, [(100 * US, 0)] * 3)
    for worker, said in zip(
        farm.workers,
        [{"device": "cuda:0"}, {"device": "cpu", "fallback": "no cuda:1"}, {"device": "cpu", "fallback": "no cuda:1"}],
        strict=True,
    ):
        worker.engine._description = said
    described = farm.engine.describe()
    assert (described["device"], described["fallback"]) == ("cuda:0, cpu", "no cuda:1")
    assert [each["device"] for each in described["replicas"]] == ["cuda:0", "cpu", "cpu"]
    assert described["buckets"] == buckets_for(ROWS_MAX)
