"""A replay's latencies count from when an act was due, not from when it could at last be sent."""

from __future__ import annotations

import numpy as np

from pillion_bench.recordings.track import Track

MS = 1_000_000


def make_track(steps: int, start_ns: int = 0, speed: float = 1.0) -> Track:
    """An act each millisecond, one episode."""
    starts = np.zeros(steps, bool)
    starts[0] = True
    return Track(np.arange(steps) * MS, starts, start_ns, speed)


def test_an_act_answered_in_time_counts_from_its_recorded_time() -> None:
    track = make_track(2, start_ns=5 * MS)
    assert track.due_ns == 5 * MS
    track.sent(5 * MS + 100)
    track.answered(5 * MS + 300, engine_ns=50)
    assert track.due_ns == 6 * MS
    assert (track.latency_ns[0], track.service_ns[0], track.engine_ns[0]) == (300, 200, 50)


def test_a_stall_is_paid_for_by_every_act_that_it_delayed() -> None:
    track = make_track(4)
    now = 0
    stalls = [3 * MS + 500, 10, 10, 10]
    for stall in stalls:
        now = max(now, track.due_ns)
        track.sent(now)
        now += stall
        track.answered(now, engine_ns=0)
    assert track.is_done
    assert track.service_ns.tolist() == stalls
    assert track.latency_ns.tolist() == [3 * MS + 500, 2 * MS + 510, MS + 520, 530]


def test_twice_the_speed_is_half_the_time() -> None:
    track = make_track(3, start_ns=MS, speed=2.0)
    dues = []
    while not track.is_done:
        dues.append(track.due_ns)
        track.sent(track.due_ns)
        track.answered(track.due_ns + 1, 0)
    assert dues == [MS, MS + MS // 2, 2 * MS]


def test_at_full_speed_an_act_is_due_when_it_is_sent() -> None:
    track = make_track(2, speed=0.0)
    assert track.due_ns == 0
    track.sent(7 * MS)
    track.answered(7 * MS + 9, 0)
    assert track.latency_ns[0] == track.service_ns[0] == 9


def test_a_track_says_where_an_episode_begins() -> None:
    track = Track(np.array([0, 1, 2]), np.array([True, False, True]), 0, 0.0)
    begins = []
    while not track.is_done:
        begins.append(track.begins)
        track.sent(0)
        track.answered(1, 0)
    assert begins == [True, False, True]
