"""The scheduler decides which acts form a batch, and why."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pillion_protocol import BatchClose
from pilliond.core.scheduler import Scheduler
from pilliond.limits import NEVER_NS


def waiting_act(rows: int = 1, *, deadline_ns: int = NEVER_NS, version: object = "v1", lock_step: bool = True) -> Any:
    """Returns a stand-in for a group with an act: what the scheduler reads of it, and no more."""
    session = SimpleNamespace(lock_step=lock_step)
    return SimpleNamespace(
        rows=rows, deadline_ns=deadline_ns, version=version, session=session, queued_ns=0, is_queued=False
    )


def test_no_waiting_act_makes_no_batch() -> None:
    assert Scheduler(8, 0).take(0, 0) is None


def test_without_a_wait_a_batch_closes_when_the_engine_is_free() -> None:
    scheduler = Scheduler(8, 0)
    scheduler.add(waiting_act(), 0, 99)
    batch = scheduler.take(0, lock_step_live=2)
    assert batch is not None
    assert batch.close is BatchClose.ENGINE_FREE


def test_a_batch_closes_when_every_live_lock_step_group_has_submitted() -> None:
    scheduler = Scheduler(8, wait_ns_max=1_000)
    scheduler.add(waiting_act(), 0, 99)
    assert scheduler.take(1, lock_step_live=2) is None
    scheduler.add(waiting_act(), 1, 99)
    batch = scheduler.take(1, lock_step_live=2)
    assert batch is not None
    assert (batch.close, batch.rows) == (BatchClose.ALL_SUBMITTED, 2)


def test_a_batch_waits_no_longer_than_its_bound() -> None:
    scheduler = Scheduler(8, wait_ns_max=1_000)
    scheduler.add(waiting_act(), 10, 99)
    assert scheduler.deadline_ns() == 1_010
    assert scheduler.take(1_009, lock_step_live=2) is None
    batch = scheduler.take(1_010, lock_step_live=2)
    assert batch is not None
    assert batch.close is BatchClose.WAIT_ELAPSED
    assert scheduler.deadline_ns() == NEVER_NS


def test_a_batch_waits_at_most_half_the_budget_of_an_act() -> None:
    scheduler = Scheduler(8, wait_ns_max=1_000)
    scheduler.add(waiting_act(deadline_ns=400), 0, 99)
    assert scheduler.deadline_ns() == 200


def test_a_full_batch_closes_at_once_and_leaves_the_rest() -> None:
    scheduler = Scheduler(4, wait_ns_max=1_000)
    for _ in range(3):
        scheduler.add(waiting_act(2), 0, 99)
    batch = scheduler.take(0, lock_step_live=9)
    assert batch is not None
    assert (batch.close, batch.rows) == (BatchClose.FULL, 4)
    assert scheduler.rows_waiting == 2


def test_an_act_whose_deadline_has_passed_is_not_in_the_batch() -> None:
    scheduler = Scheduler(8, 0)
    late, in_time = waiting_act(deadline_ns=100), waiting_act(deadline_ns=101)
    scheduler.add(late, 0, 99)
    scheduler.add(in_time, 0, 99)
    batch = scheduler.take(100, lock_step_live=2)
    assert batch is not None
    assert (batch.groups, batch.expired) == ([in_time], [late])


def test_draining_closes_a_batch_at_once() -> None:
    scheduler = Scheduler(8, wait_ns_max=1_000)
    scheduler.add(waiting_act(), 0, 99)
    batch = scheduler.take(0, lock_step_live=2, drain=True)
    assert batch is not None
    assert batch.close is BatchClose.DRAIN


ACTS = st.lists(
    st.tuples(
        st.integers(1, 8),
        st.sampled_from(["v1", "v2"]),
        st.one_of(st.just(NEVER_NS), st.integers(0, 200)),
        st.booleans(),
    ),
    max_size=40,
)


@given(acts=ACTS, takes=st.lists(st.integers(0, 40), max_size=40), rows_max=st.integers(8, 16))
def test_a_batch_never_mixes_versions_or_exceeds_its_rows_and_no_act_is_lost(
    acts: list[tuple[int, str, int, bool]], takes: list[int], rows_max: int
) -> None:
    scheduler = Scheduler(rows_max, 0)
    added, taken = [], []
    now_ns = 0
    for index, (rows, version, deadline_ns, lock_step) in enumerate(acts):
        group = waiting_act(rows, deadline_ns=deadline_ns, version=version, lock_step=lock_step)
        scheduler.add(group, now_ns, 99)
        added.append(group)
        now_ns += 5
        if index in takes:
            taken += checked_groups(scheduler.take(now_ns, 1), now_ns, rows_max)
    while (batch := scheduler.take(now_ns, 0, drain=True)) is not None:
        taken += checked_groups(batch, now_ns, rows_max)
    assert sorted(map(id, taken)) == sorted(map(id, added))
    assert scheduler.rows_waiting == 0


def checked_groups(batch: Any, now_ns: int, rows_max: int) -> list[Any]:
    """Checks one batch and returns its groups, those that expired included."""
    if batch is None:
        return []
    assert batch.rows == sum(group.rows for group in batch.groups) <= rows_max
    assert len({group.version for group in batch.groups}) <= 1
    assert all(group.deadline_ns > now_ns for group in batch.groups)
    assert all(group.deadline_ns <= now_ns for group in batch.expired)
    return [*batch.groups, *batch.expired]
