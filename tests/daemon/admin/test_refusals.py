"""Refusals: a budget for each peer that refills, in bounded memory; a log that does not grow with them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilliond.admin.http.refusals import Refusals
from pilliond.limits import REFUSALS_BURST_MAX, REFUSALS_PER_S, REFUSED_PEERS_MAX


class Log:
    """Keeps the records."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.records.append(fields)


class Clock:
    now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def refusals(log: Log, clock: Clock) -> Refusals:
    return Refusals(log, clock)


def refuse(refusals: Refusals, peer: str = "peer", reason: str = "wrong_token") -> int:
    return refusals.refuse(peer, reason, "GET", "/health")


def test_a_spent_budget_refills_with_time(refusals: Refusals, clock: Clock) -> None:
    assert [refuse(refusals) for _ in range(REFUSALS_BURST_MAX)] == [0] * REFUSALS_BURST_MAX
    assert refuse(refusals) >= 1
    assert refuse(refusals, "another") == 0
    clock.now_ns += round(3e9 / REFUSALS_PER_S)
    assert [refuse(refusals) > 0 for _ in range(4)] == [False, False, False, True]
    assert refusals.counts["too_many"] == 2


def test_after_retry_after_the_next_refusal_has_its_reason(refusals: Refusals, clock: Clock) -> None:
    while not (wait_s := refuse(refusals)):
        pass
    clock.now_ns += wait_s * 1_000_000_000
    assert refuse(refusals) == 0


def test_remembered_peers_are_bounded_and_the_oldest_is_forgotten(refusals: Refusals) -> None:
    for _ in range(REFUSALS_BURST_MAX):
        refuse(refusals, "first")
        refuse(refusals, "kept")
    for number in range(REFUSED_PEERS_MAX * 2):
        refuse(refusals, f"peer {number}")
        if number % 500 == 0:
            assert refuse(refusals, "kept") > 0
    assert len(refusals) == REFUSED_PEERS_MAX
    assert refuse(refusals, "first") == 0


def test_the_log_counts_what_it_left_out(refusals: Refusals, log: Log, clock: Clock) -> None:
    for number in range(1_000):
        refuse(refusals, f"peer {number}")
    assert len(log.records) == REFUSALS_BURST_MAX
    clock.now_ns += round(1e9 / REFUSALS_PER_S)
    refuse(refusals)
    assert log.records[-1]["unlogged"] == 1_000 - REFUSALS_BURST_MAX


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3_000_000_000)), max_size=200))
def test_no_peer_gets_more_reasons_than_its_budget_allows(asks: list[tuple[str, int]]) -> None:
    clock = Clock()
    refusals = Refusals(Log(), clock)
    heard = dict.fromkeys("abc", 0)
    for peer, pause_ns in asks:
        clock.now_ns += pause_ns
        heard[peer] += refuse(refusals, peer) == 0
    bound = REFUSALS_BURST_MAX + clock.now_ns / 1e9 * REFUSALS_PER_S + 1e-6
    assert all(count <= bound for count in heard.values())
    assert sum(refusals.counts.values()) == len(asks)
