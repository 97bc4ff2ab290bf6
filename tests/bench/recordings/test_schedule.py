"""The latency of a replayed act counts from its due time, not from the time it could be sent."""

from __future__ import annotations

import numpy as np

from pillion_bench.recordings.schedule import ReplaySchedule

MS = 1_000_000


def make_schedule(steps: int, start_ns: int = 0, speed: float = 1.0) -> ReplaySchedule:
    """One episode with an act each millisecond."""
    starts = np.zeros(steps, bool)
    starts[0] = True
    return ReplaySchedule(np.arange(steps) * MS, starts, start_ns, speed)


def test_the_latency_of_an_act_counts_from_its_recorded_time() -> None:
    schedule = make_schedule(2, start_ns=5 * MS)
    assert schedule.due_ns == 5 * MS
    schedule.sent(5 * MS + 100)
    schedule.answered(5 * MS + 300, engine_ns=50)
    assert schedule.due_ns == 6 * MS
    assert (schedule.latency_ns[0], schedule.service_ns[0], schedule.engine_ns[0]) == (300, 200, 50)


def test_a_stall_shows_in_every_act_that_it_delayed() -> None:
    schedule = make_schedule(4)
    now = 0
    stalls = [3 * MS + 500, 10, 10, 10]
    for stall in stalls:
        now = max(now, schedule.due_ns)
        schedule.sent(now)
        now += stall
        schedule.answered(now, engine_ns=0)
    assert schedule.is_done
    assert schedule.service_ns.tolist() == stalls
    assert schedule.latency_ns.tolist() == [3 * MS + 500, 2 * MS + 510, MS + 520, 530]


def test_twice_the_speed_is_half_the_time() -> None:
    schedule = make_schedule(3, start_ns=MS, speed=2.0)
    dues = []
    while not schedule.is_done:
        dues.append(schedule.due_ns)
        schedule.sent(schedule.due_ns)
        schedule.answered(schedule.due_ns + 1, 0)
    assert dues == [MS, MS + MS // 2, 2 * MS]


def test_at_full_speed_an_act_is_due_when_it_is_sent() -> None:
    schedule = make_schedule(2, speed=0.0)
    assert schedule.due_ns == 0
    schedule.sent(7 * MS)
    schedule.answered(7 * MS + 9, 0)
    assert schedule.latency_ns[0] == schedule.service_ns[0] == 9


def test_a_schedule_knows_where_each_episode_begins() -> None:
    schedule = ReplaySchedule(np.array([0, 1, 2]), np.array([True, False, True]), 0, 0.0)
    begins = []
    while not schedule.is_done:
        begins.append(schedule.begins)
        schedule.sent(0)
        schedule.answered(1, 0)
    assert begins == [True, False, True]
