"""What counts as a hang, and what does not: other processes' load, a suspended host, a watch that was itself stopped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilliond.limits import LOOK_MS, LOOK_MS_MAX, STALLED_MS_MAX, TICK_AGE_MS_MAX
from pilliond.linux.process_activity import Activity, ProcessState
from pilliond.supervision.progress_watch import ProgressWatch, is_late

MS = 1_000_000
HANG_S_MAX = 10.0
LOOKS_MAX = 1_000
RUNNABLE, BLOCKED, SLEEPING, STOPPED, ENDED = ProcessState


class Watching:
    """A watch, the clock, and a process that does not tick any more."""

    def __init__(self, hang_s_max: float = HANG_S_MAX) -> None:
        self.watch = ProgressWatch(hang_s_max)
        self.now_ns = 5_000 * MS
        self.ticked_ns = 1_000 * MS
        self.cpu_ns = 700 * MS

    def look(self, state: ProcessState, cpu_ms: float = 0, after_ms: int = LOOK_MS) -> None:
        self.now_ns += after_ms * MS
        self.cpu_ns += round(cpu_ms * MS)
        self.watch.look(self.now_ns, self.ticked_ns, Activity(state, self.cpu_ns))

    def looks_until_hung(self, state: ProcessState, cpu_ms: float = 0) -> int | None:
        for number in range(LOOKS_MAX):
            self.look(state, cpu_ms)
            if self.watch.is_hung:
                return number
        return None


@pytest.mark.parametrize("state", [STOPPED, SLEEPING])
def test_a_process_that_is_stopped_or_sleeps_for_too_long_hangs(state: ProcessState) -> None:
    assert Watching().looks_until_hung(state) == HANG_S_MAX * 1_000 / LOOK_MS


def test_a_process_that_computes_all_the_time_hangs() -> None:
    assert Watching().looks_until_hung(RUNNABLE, cpu_ms=LOOK_MS) == HANG_S_MAX * 1_000 / LOOK_MS


def test_a_process_with_several_threads_does_not_hang_sooner() -> None:
    assert Watching().looks_until_hung(RUNNABLE, cpu_ms=8 * LOOK_MS) == HANG_S_MAX * 1_000 / LOOK_MS


def test_a_process_that_could_run_and_gets_no_cpu_does_not_hang() -> None:
    watching = Watching()
    assert watching.looks_until_hung(RUNNABLE) is None
    assert not watching.watch.is_stalled


def test_a_process_that_gets_a_tenth_of_a_cpu_hangs_ten_times_later() -> None:
    assert Watching().looks_until_hung(RUNNABLE, cpu_ms=LOOK_MS / 10) == HANG_S_MAX * 10_000 / LOOK_MS


@pytest.mark.parametrize("state", [BLOCKED, ENDED])
def test_a_process_that_waits_in_the_kernel_or_has_ended_does_not_hang(state: ProcessState) -> None:
    assert Watching().looks_until_hung(state, cpu_ms=LOOK_MS) is None


def test_a_tick_clears_what_was_counted() -> None:
    watching = Watching()
    for _ in range(20):
        watching.look(STOPPED)
    assert watching.watch.is_stalled
    watching.ticked_ns = watching.now_ns
    watching.look(STOPPED)
    assert not watching.watch.is_stalled
    assert watching.watch.stalled_ns == 0


def test_a_watch_that_was_stopped_itself_counts_one_look() -> None:
    watching = Watching()
    watching.look(STOPPED)
    watching.look(STOPPED, after_ms=3_600_000)
    assert watching.watch.stalled_ns == LOOK_MS_MAX * MS
    assert not watching.watch.is_hung


def test_the_first_look_counts_nothing() -> None:
    watching = Watching()
    watching.look(STOPPED, after_ms=3_600_000)
    assert watching.watch.stalled_ns == 0


def test_with_a_bound_of_0_nothing_is_a_hang_but_it_is_still_seen() -> None:
    watching = Watching(hang_s_max=0)
    assert watching.looks_until_hung(STOPPED) is None
    assert watching.watch.is_stalled


def test_a_stopped_process_is_stalled_within_two_seconds_of_its_last_tick() -> None:
    watching = Watching()
    watching.now_ns = watching.ticked_ns + TICK_AGE_MS_MAX * MS
    while not watching.watch.is_stalled:
        watching.look(STOPPED, after_ms=LOOK_MS + 1)
    assert watching.now_ns - watching.ticked_ns < 2_000 * MS
    assert watching.watch.stalled_ns > STALLED_MS_MAX * MS


def test_a_tick_as_old_as_the_bound_is_on_time() -> None:
    assert not is_late(TICK_AGE_MS_MAX * MS, 0)
    assert is_late(TICK_AGE_MS_MAX * MS + 1, 0)


LOOKS = st.lists(st.tuples(st.sampled_from(ProcessState), st.integers(0, 10_000), st.integers(0, 10_000)), max_size=50)


@given(LOOKS)
def test_no_look_counts_for_more_than_its_bound_and_none_backwards(looks: list[tuple[ProcessState, int, int]]) -> None:
    watching = Watching()
    for state, cpu_ms, after_ms in looks:
        before_ns = watching.watch.stalled_ns
        watching.look(state, cpu_ms, after_ms)
        assert 0 <= watching.watch.stalled_ns - before_ns <= min(LOOK_MS_MAX, after_ms) * MS
