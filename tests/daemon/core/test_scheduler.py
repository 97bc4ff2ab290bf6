"""The scheduler decides which acts form a batch, on which engine, and why."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pillion_protocol import BatchClose
from pilliond.core.scheduler import Batch, PolicyShare, Scheduler
from pilliond.engine.service_time import ServiceTimes
from pilliond.limits import CLOSE_MARGIN_NS, HOPELESS_PER_TRIAL, NEVER_NS

BUCKETS = [1, 2, 4, 8, 16]


class StandInEngine:
    """What the scheduler reads of an engine: whether it is free, and of which others it consists."""

    def __init__(self, *parts: StandInEngine) -> None:
        self.parts = parts
        self.replicas: list[Any] = []
        self.memories = [SimpleNamespace(user=None)]
        self.is_busy = False
        self.is_lost = False

    @property
    def is_ready(self) -> bool:
        return not self.is_lost and all(part.is_ready for part in self.parts)

    @property
    def free(self) -> list[Any]:
        is_free = self.is_ready and not self.is_busy and not any(part.is_busy for part in self.parts)
        return self.memories if is_free else []


def version(*parts: Any) -> Any:
    """Returns a stand-in for a version, mixed if it has parts."""
    engine = StandInEngine(*(part.engine for part in parts))
    return Hashable(engine=engine, service=ServiceTimes(BUCKETS))


class Hashable(SimpleNamespace):
    """A namespace that is equal to itself only."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class Bench:
    """A scheduler with one policy, and one version unless a test makes more."""

    def __init__(self, rows_max: int = 8, wait_ns_max: int = 0, lock_step_live: int = 2) -> None:
        self.scheduler = Scheduler()
        self.share = PolicyShare(rows_max, wait_ns_max)
        self.share.lock_step_live = lock_step_live
        self.version = version()

    def group(self, rows: int = 1, deadline_ns: int = NEVER_NS, **fields: Any) -> Any:
        """Returns a stand-in for a group with an act: what the scheduler reads of it, and no more."""
        session = SimpleNamespace(lock_step=fields.get("lock_step", True), share=fields.get("share", self.share))
        return Hashable(
            rows=rows, deadline_ns=deadline_ns, version=fields.get("version", self.version), session=session,
            queued_ns=fields.get("queued_ns", 0), queue=None,
        )  # fmt: skip

    def add(self, now_ns: int = 0, rows: int = 1, deadline_ns: int = NEVER_NS, **fields: Any) -> Any:
        """Adds an act and returns its group."""
        group = self.group(rows, deadline_ns, queued_ns=now_ns, **fields)
        self.scheduler.add(group, now_ns)
        return group

    def take(self, now_ns: int = 0, **options: bool) -> Batch:
        """Takes a batch that must be there."""
        batch = self.scheduler.take(now_ns, **options)
        assert batch is not None
        return batch


def test_no_waiting_act_makes_no_batch() -> None:
    assert Scheduler().take(0) is None
    assert Scheduler().deadline_ns() == NEVER_NS


def test_without_a_wait_a_batch_closes_when_the_engine_is_free() -> None:
    bench = Bench()
    bench.add()
    assert bench.take().close is BatchClose.ENGINE_FREE


def test_a_batch_closes_when_every_live_lock_step_group_has_submitted() -> None:
    bench = Bench(wait_ns_max=1_000)
    bench.add()
    assert bench.scheduler.take(1) is None
    bench.add(1)
    batch = bench.take(1)
    assert (batch.close, batch.rows) == (BatchClose.ALL_SUBMITTED, 2)


def test_a_lock_step_group_whose_act_runs_elsewhere_is_not_waited_for() -> None:
    bench = Bench(wait_ns_max=1_000)
    other = bench.group(version=version())
    bench.scheduler.submitted([other], other.version, 1, 0)
    bench.add()
    assert bench.take(1).close is BatchClose.ALL_SUBMITTED
    bench.scheduler.completed([other])
    bench.add()
    assert bench.scheduler.take(1) is None


def test_a_lock_step_group_that_was_answered_without_a_batch_is_not_waited_for() -> None:
    bench = Bench(wait_ns_max=1_000)
    other = bench.group()
    for _ in range(2):
        bench.add()
        assert bench.scheduler.take(1) is None
        bench.scheduler.answered(other)
        bench.scheduler.answered(other)
        assert bench.take(1).close is BatchClose.ALL_SUBMITTED
    bench.scheduler.answered(other)
    assert bench.scheduler.add(bench.group(), 1)
    assert bench.take(1).close is BatchClose.ALL_SUBMITTED


def test_a_group_that_was_answered_without_a_batch_counts_once_and_until_it_acts_again() -> None:
    bench = Bench(wait_ns_max=1_000, lock_step_live=3)
    other = bench.group()
    bench.scheduler.answered(other)
    bench.scheduler.add(other, 0)
    bench.scheduler.answered(bench.group(lock_step=False))
    bench.add()
    assert bench.scheduler.take(1) is None
    bench.scheduler.answered(bench.group())
    assert bench.take(1).rows == 2
    assert bench.share.lock_step_running == 0


def test_where_all_were_answered_without_a_batch_the_next_act_waits_for_the_others_again() -> None:
    bench = Bench(wait_ns_max=1_000)
    first, second = bench.group(), bench.group()
    bench.scheduler.answered(first)
    bench.scheduler.answered(second)
    bench.scheduler.add(first, 0)
    assert bench.scheduler.take(1) is None
    bench.scheduler.add(second, 1)
    assert bench.take(1).rows == 2


def test_a_batch_waits_no_longer_than_its_bound() -> None:
    bench = Bench(wait_ns_max=1_000)
    bench.add(10)
    assert bench.scheduler.deadline_ns() == 1_010
    assert bench.scheduler.take(1_009) is None
    assert bench.take(1_010).close is BatchClose.WAIT_ELAPSED
    assert bench.scheduler.deadline_ns() == NEVER_NS


def test_a_batch_waits_at_most_half_the_budget_of_an_act_while_the_service_time_is_unknown() -> None:
    bench = Bench(wait_ns_max=1_000)
    bench.add(0, deadline_ns=400)
    assert bench.scheduler.take(199) is None
    assert bench.take(200).close is BatchClose.WAIT_ELAPSED


def test_a_batch_closes_early_enough_for_its_most_urgent_act() -> None:
    bench = Bench(wait_ns_max=10_000_000)
    bench.version.service.observe(1, 300_000)
    bench.version.service.observe(2, 500_000)
    bench.share.lock_step_live = 9
    bench.add(deadline_ns=5_000_000)
    assert bench.scheduler.deadline_ns() == 5_000_000 - 300_000 - CLOSE_MARGIN_NS
    bench.add(deadline_ns=4_000_000)
    due_ns = 4_000_000 - 500_000 - CLOSE_MARGIN_NS
    assert bench.scheduler.deadline_ns() == due_ns
    assert bench.scheduler.take(due_ns - 1) is None
    assert bench.take(due_ns).rows == 2


def test_an_act_that_cannot_be_done_in_time_is_known_before_it_waits() -> None:
    bench = Bench()
    bench.version.service.observe(1, 300)
    assert not bench.scheduler.is_hopeless(bench.group(), 0)
    assert not bench.scheduler.is_hopeless(bench.group(deadline_ns=301), 0)
    assert bench.scheduler.is_hopeless(bench.group(deadline_ns=300), 0)
    running = bench.add()
    bench.take()
    bench.version.engine.is_busy = True
    bench.scheduler.submitted([running], bench.version, 1, 0)
    assert bench.scheduler.is_hopeless(bench.group(deadline_ns=600), 10)
    assert not bench.scheduler.is_hopeless(bench.group(deadline_ns=601), 10)


def test_of_several_replicas_the_first_that_will_be_free_decides_what_can_be_done_in_time() -> None:
    bench = Bench()
    bench.version.service.observe(1, 300)
    bench.version.engine.is_busy = True
    frees = {True: [900, 500], False: [100]}
    bench.version.engine.replicas = [
        SimpleNamespace(is_ready=is_ready, free_ns=lambda now_ns, at_ns=at_ns: at_ns)
        for is_ready, each in frees.items()
        for at_ns in each
    ]
    assert bench.scheduler.is_hopeless(bench.group(deadline_ns=800), 10)
    assert not bench.scheduler.is_hopeless(bench.group(deadline_ns=801), 10)


def test_a_full_batch_closes_at_once_and_leaves_the_rest() -> None:
    bench = Bench(4, wait_ns_max=1_000, lock_step_live=9)
    for _ in range(3):
        bench.add(rows=2)
    batch = bench.take()
    assert (batch.close, batch.rows) == (BatchClose.FULL, 4)
    assert bench.scheduler.rows_waiting == bench.share.rows_waiting == 2


def test_the_rest_of_a_batch_for_which_nobody_waited_runs_at_once() -> None:
    bench = Bench(wait_ns_max=1_000)
    other = version()
    bench.add()
    bench.add(version=other)
    first, second = bench.take(), bench.take()
    assert {first.groups[0].version, second.groups[0].version} == {bench.version, other}
    assert first.close is second.close is BatchClose.ALL_SUBMITTED
    bench.add(5)
    assert bench.scheduler.take(5) is None


def test_an_act_whose_deadline_has_passed_is_not_in_the_batch() -> None:
    bench = Bench()
    late, in_time = bench.add(deadline_ns=100), bench.add(deadline_ns=101)
    batch = bench.take(100)
    assert (batch.groups, batch.expired) == ([in_time], [late])


def test_acts_expire_while_their_engine_is_busy() -> None:
    bench = Bench()
    bench.version.engine.is_busy = True
    first, second, _ = bench.add(deadline_ns=100), bench.add(deadline_ns=200), bench.add()
    assert bench.scheduler.take(50) is None
    assert bench.scheduler.deadline_ns() == 100
    assert not bench.scheduler.expire(99)
    assert bench.scheduler.expire(100) == [first]
    assert bench.scheduler.deadline_ns() == 200
    assert bench.scheduler.expire(300) == [second]
    assert (bench.scheduler.deadline_ns(), bench.scheduler.rows_waiting) == (NEVER_NS, 1)


def test_a_busy_engine_holds_up_its_own_version_only() -> None:
    bench = Bench()
    busy = version()
    busy.engine.is_busy = True
    bench.add(version=busy)
    free = bench.add()
    assert bench.take().groups == [free]
    assert bench.scheduler.take(0) is None
    assert bench.scheduler.closes_alone(bench.group(lock_step=False), 0) is False
    bench.share.lock_step_live = 0
    assert bench.scheduler.closes_alone(bench.group(lock_step=False), 0)
    assert not bench.scheduler.closes_alone(bench.group(lock_step=False, version=busy), 0)
    busy.engine.is_busy = False
    assert bench.take().groups[0].version is busy


def test_while_a_mixed_version_waits_no_younger_act_takes_one_of_its_engines() -> None:
    bench = Bench()
    bench.share.lock_step_live = 0
    one, other = version(), version()
    one.engine.is_busy = True
    mixed = bench.add(1, version=version(one, other))
    young = bench.add(2, version=other)
    assert bench.scheduler.take(3) is None
    assert not bench.scheduler.closes_alone(bench.group(version=other), 3)
    assert bench.scheduler.has_work(one)
    one.engine.is_busy = False
    assert [bench.take(4).groups, bench.take(4).groups] == [[mixed], [young]]
    assert not bench.scheduler.has_work(one)


def test_nobody_waits_for_an_engine_that_is_being_replaced_with_another_one_in_hand() -> None:
    bench = Bench()
    bench.share.lock_step_live = 0
    lost, healthy = version(), version()
    lost.engine.is_lost = True
    bench.add(1, version=version(lost, healthy))
    young = bench.add(2, version=healthy)
    assert bench.take(3).groups == [young]
    assert bench.scheduler.take(4) is None
    assert bench.scheduler.closes_alone(bench.group(lock_step=False, version=healthy), 5)


def test_one_hopeless_act_in_many_is_tried_so_that_a_quicker_engine_shows() -> None:
    bench = Bench()
    bench.version.service.observe(1, 10_000)
    tries = [not bench.scheduler.is_hopeless(bench.group(deadline_ns=5_000), 0) for _ in range(2 * HOPELESS_PER_TRIAL)]
    assert tries.count(True) == 2
    bench.version.service.observe(1, 1_000)
    assert not bench.scheduler.is_hopeless(bench.group(deadline_ns=5_000), 0)


def test_an_older_act_does_not_wait_for_a_mixed_version() -> None:
    bench = Bench()
    one, other = version(), version()
    one.engine.is_busy = True
    old = bench.add(1, version=other)
    bench.add(2, version=version(one, other))
    assert bench.take(3).groups == [old]


def test_a_failed_batch_runs_again_in_halves_before_all_others() -> None:
    bench = Bench()
    groups = [bench.add(number) for number in range(5)]
    assert bench.take(5).groups == groups
    late = bench.add(6)
    bench.scheduler.put_back(bench.version, groups, in_halves=True)
    assert [bench.take(7).groups for _ in range(3)] == [groups[:2], groups[2:], [late]]
    assert bench.scheduler.rows_waiting == 0


def test_what_is_put_back_still_expires_and_can_be_replaced() -> None:
    bench = Bench()
    groups = [bench.add(deadline_ns=100), bench.add(), bench.add()]
    bench.take(1)
    bench.version.engine.is_busy = True
    bench.scheduler.put_back(bench.version, groups, in_halves=False)
    assert bench.scheduler.deadline_ns() == 100
    assert bench.scheduler.expire(100) == groups[:1]
    bench.scheduler.add(groups[1], 101)
    assert bench.scheduler.rows_waiting == 2
    groups[2].version = version()
    bench.scheduler.add(groups[2], 102)
    assert bench.take(103).groups == [groups[2]]
    bench.version.engine.is_busy = False
    assert bench.take(103).groups == [groups[1]]


def test_the_policy_that_used_the_loop_least_goes_first_and_idle_time_is_not_saved_up() -> None:
    bench = Bench(rows_max=1, lock_step_live=0)
    share = PolicyShare(1)
    light = version()
    order = []
    for number in range(12):
        bench.add(number)
        bench.add(number, version=light, share=share)
    for _ in range(12):
        group = bench.take(99).groups[0]
        order.append(group.version is light)
        group.session.share.used_ns += 100 if group.version is light else 300
    assert order.count(True) == 9
    idle = PolicyShare(1)
    bench.add(99, version=version(), share=idle)
    assert idle.used_ns == min(share.used_ns, bench.share.used_ns)


def test_draining_closes_a_batch_at_once() -> None:
    bench = Bench(wait_ns_max=1_000)
    bench.add()
    assert bench.take(drain=True).close is BatchClose.DRAIN


def test_everything_that_waits_for_a_version_can_be_taken_away() -> None:
    bench = Bench()
    other = version()
    alone, kept = bench.add(), bench.add(version=other)
    mixed = bench.add(version=version(bench.version, other))
    assert {*bench.scheduler.take_all(bench.version)} == {alone, mixed}
    assert bench.take().groups == [kept]


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"),
            st.integers(1, 8),
            st.integers(0, 2),
            st.one_of(st.just(NEVER_NS), st.integers(0, 300)),
            st.booleans(),
        ),
        st.tuples(st.just("take"), st.booleans()),
        st.tuples(st.just("free"), st.integers(0, 1)),
        st.tuples(st.just("expire")),
    ),
    max_size=60,
)


@given(steps=STEPS, rows_max=st.integers(8, 16), wait_ns=st.sampled_from([0, 50]))
def test_whatever_happens_no_act_is_lost_none_runs_late_and_no_engine_gets_two_batches(
    steps: list[tuple[Any, ...]], rows_max: int, wait_ns: int
) -> None:
    bench = Bench(rows_max, wait_ns)
    one, other = version(), version()
    versions = [one, other, version(one, other)]
    added, done = [], []
    clock = count(0, 5)
    now_ns = 0
    for step in steps:
        now_ns = next(clock)
        match step:
            case ("add", rows, index, deadline_ns, lock_step):
                added.append(bench.add(now_ns, rows, deadline_ns, version=versions[index], lock_step=lock_step))
            case ("take", is_busy):
                done += checked(bench.scheduler.take(now_ns), now_ns, rows_max, is_busy=is_busy)
            case ("free", index):
                versions[index].engine.is_busy = False
            case ("expire",):
                expired = bench.scheduler.expire(now_ns)
                assert all(group.deadline_ns <= now_ns for group in expired)
                done += expired
    one.engine.is_busy = other.engine.is_busy = False
    while (batch := bench.scheduler.take(now_ns, drain=True)) is not None:
        done += checked(batch, now_ns, rows_max, is_busy=False)
    assert sorted(map(id, done)) == sorted(map(id, added))
    assert (bench.scheduler.rows_waiting, bench.share.rows_waiting, bench.share.lock_step_waiting) == (0, 0, 0)


def checked(batch: Batch | None, now_ns: int, rows_max: int, *, is_busy: bool) -> list[Any]:
    """Checks one batch and returns its groups, those that expired included; perhaps its engines are busy from now on."""
    if batch is None:
        return []
    assert batch.rows == sum(group.rows for group in batch.groups) <= rows_max
    assert all(group.deadline_ns > now_ns for group in batch.groups)
    assert all(group.deadline_ns <= now_ns for group in batch.expired)
    assert all(group.queue is None for group in [*batch.groups, *batch.expired])
    engines: set[Any] = {group.version.engine for group in batch.groups}
    for engine in engines:
        assert engine.free
        for part in engine.parts or (engine,):
            part.is_busy = is_busy
    assert len({group.version for group in batch.groups}) <= 1
    return [*batch.groups, *batch.expired]
