"""Service times follow what is measured: the fast tracker from below, the slow one from above."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pilliond.engine.service_time import ServiceTimes
from pilliond.limits import SLOWER_FACTOR_MAX, SLOWER_NS_MAX


def test_each_bucket_has_times_of_its_own() -> None:
    times = ServiceTimes([1, 4, 20])
    assert [times.fast_ns(rows) for rows in (1, 4, 20)] == [0, 0, 0]
    assert not times.is_known
    times.seed(4, 30, 40)
    assert times.is_known
    times.observe(5, 900)
    assert [(times.fast_ns(rows), times.slow_ns(rows)) for rows in (1, 2, 4, 5, 20)] == [
        (0, 40),
        (30, 40),
        (30, 40),
        (900, 900),
        (900, 900),
    ]
    assert times.by_bucket() == [(1, 0, 0), (4, 30, 40), (20, 900, 900)]


def test_one_outlier_moves_the_slow_tracker_at_once_and_is_forgotten() -> None:
    times = ServiceTimes([1])
    for _ in range(10):
        times.observe(1, 1_000)
    times.observe(1, 1_000_000)
    assert times.fast_ns(1) < 1_100
    assert times.slow_ns(1) == 1_000_000
    for _ in range(1_000):
        times.observe(1, 1_000)
    assert (times.fast_ns(1), times.slow_ns(1)) == (1_000, 1_000)


def test_a_version_that_gets_slower_or_faster_is_followed() -> None:
    times = ServiceTimes([1])
    times.seed(1, 1_000, 2_000)
    for _ in range(1_000):
        times.observe(1, 50_000)
    assert (times.fast_ns(1), times.slow_ns(1)) == (50_000, 50_000)
    times.observe(1, 10)
    assert times.fast_ns(1) == 10


def test_one_run_that_takes_an_hour_moves_the_slow_tracker_only_so_far() -> None:
    times = ServiceTimes([1])
    times.seed(1, 1_000, 2_000)
    times.observe(1, 3_600 * 10**9)
    assert times.slow_ns(1) == SLOWER_FACTOR_MAX * 2_000 + SLOWER_NS_MAX
    for _ in range(20):
        times.observe(1, 3_600 * 10**9)
    assert times.slow_ns(1) == 3_600 * 10**9


@given(st.lists(st.integers(1, SLOWER_NS_MAX), min_size=1, max_size=50))
def test_fast_is_never_above_the_last_time_and_slow_never_below(taken: list[int]) -> None:
    times = ServiceTimes([1])
    for ns in taken:
        times.observe(1, ns)
        assert min(taken) <= times.fast_ns(1) <= ns <= times.slow_ns(1) <= max(taken)


def test_what_was_measured_in_the_engine_alone_refuses_no_act_that_can_be_done() -> None:
    times = ServiceTimes([1, 2])
    times.learn(2, 100, 300)
    assert (times.fast_ns(2), times.slow_ns(2), times.is_known) == (50, 300, True)
    # A batch is due early enough for the next larger bucket, too.
    assert (times.fast_ns(1), times.slow_ns(1)) == (0, 300)
