"""Whether and when a serving process that ended is started again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pilliond.limits import (
    RESTART_DELAY_S_MAX,
    RESTART_DELAY_S_MIN,
    RESTART_STEADY_S_MIN,
    RESTARTS_WITH_ALL_MAX,
    RESTARTS_WITHOUT_READY_MAX,
)
from pilliond.supervision.restart_policy import RestartPolicy

S = 1_000_000_000
STEADY_NS = round(RESTART_STEADY_S_MIN * S)
WINDOW_S = 300.0


class Life:
    """A serving process that starts and ends, and the clock."""

    def __init__(self, restarts_max: int = 1_000) -> None:
        self.policy = RestartPolicy(restarts_max, WINDOW_S)
        self.now_ns = 17 * S

    def end(self, served_ns: int | None = 0, exit_code: int = -9) -> float:
        """Starts a process that ends after it served for that time, or before READY (None); returns the pause."""
        self.policy.started()
        if served_ns is not None:
            self.policy.became_ready(self.now_ns)
            self.now_ns += served_ns
        return self.policy.ended(exit_code, self.now_ns)


def test_the_pause_doubles_with_each_failure_up_to_a_bound() -> None:
    life = Life()
    pauses = [life.end() for _ in range(8)]
    assert pauses[:3] == [RESTART_DELAY_S_MIN, 2 * RESTART_DELAY_S_MIN, 4 * RESTART_DELAY_S_MIN]
    assert pauses == sorted(pauses)
    assert pauses[-1] == RESTART_DELAY_S_MAX


def test_a_short_ready_does_not_reset_the_pause() -> None:
    life = Life()
    assert [life.end(STEADY_NS - 1) for _ in range(3)] == [RESTART_DELAY_S_MIN * 2**number for number in range(3)]


def test_steady_service_resets_the_pause() -> None:
    life = Life()
    for _ in range(4):
        life.end()
    assert life.end(STEADY_NS) == RESTART_DELAY_S_MIN
    assert life.policy.failures == 1


def test_a_failed_start_counts_as_a_failure_whatever_its_length() -> None:
    life = Life()
    life.end(None)
    life.now_ns += 10 * STEADY_NS
    assert life.end(None) == 2 * RESTART_DELAY_S_MIN


def test_after_some_failed_starts_in_a_row_the_next_one_is_made_alone() -> None:
    life = Life()
    for _ in range(RESTARTS_WITH_ALL_MAX):
        assert not life.policy.starts_alone
        life.end(None)
    assert life.policy.starts_alone
    life.end(0)
    assert not life.policy.starts_alone


def test_it_gives_up_after_failed_starts_in_a_row() -> None:
    life = Life()
    for number in range(1, RESTARTS_WITHOUT_READY_MAX):
        life.end(None)
        assert not life.policy.gave_up, number
    assert life.end(None, exit_code=70) == 0
    assert life.policy.gave_up == f"{RESTARTS_WITHOUT_READY_MAX} starts in a row failed"
    assert (life.policy.last_exit_code, life.policy.restart_at_ns) == (70, None)


def test_it_gives_up_after_too_many_restarts_within_the_window() -> None:
    life = Life(restarts_max=3)
    for _ in range(3):
        life.end()
        assert not life.policy.gave_up
    assert life.end() == 0
    assert life.policy.gave_up == "it was restarted 3 times within 300 s"
    assert life.policy.restarts == 3


def test_restarts_before_the_window_do_not_count() -> None:
    life = Life(restarts_max=2)
    for _ in range(10):
        life.end(round(WINDOW_S * S) // 2 + 1)
        assert not life.policy.gave_up


def test_without_restarts_the_first_end_is_the_last() -> None:
    life = Life(restarts_max=0)
    life.end()
    assert life.policy.gave_up


def test_the_next_start_is_due_after_the_pause_until_it_is_made() -> None:
    life = Life()
    pause_s = life.end()
    assert life.policy.restart_at_ns == life.now_ns + round(pause_s * S)
    life.policy.started()
    assert life.policy.restart_at_ns is None


@given(st.lists(st.one_of(st.none(), st.integers(0, STEADY_NS - 1)), max_size=40))
def test_without_steady_service_the_pause_never_shrinks(lives: list[int | None]) -> None:
    life = Life()
    pauses = []
    for served_ns in lives:
        pauses.append(life.end(served_ns))
        if life.policy.gave_up:
            return
    assert pauses == sorted(pauses)
