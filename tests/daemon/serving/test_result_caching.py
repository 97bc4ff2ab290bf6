"""Acts that the result cache answers: in the data plane without sockets, where the engine counts its batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion_protocol import Action, BatchClose, Begun, Error, ErrorCode, Fallback, Goodbye, RemoteProtocolError, decode
from pillion_protocol.action_steps import DeviceTimes
from pillion_protocol.slots import write_generation
from pillion_protocol.steps import ActStep
from pilliond.engine.batch_memory import BatchMemory
from pilliond.ipc import metrics_page as page_cells
from pilliond.ipc.metrics_page import POLICY_CELLS
from pilliond.limits import ServingLimits
from pilliond.serving.result_caching import CachingSessions
from pilliond.settings.schema import EngineSettings
from pilliond.transport.slots import SlotRegion
from tests.daemon.serving.test_late_engines import LatePlane
from tests.daemon.serving.test_loop import EveryActGetsExactlyOneReply
from tests.daemon.support.fakes import CountingEngine, DataPlane, act, action_of, codes, observation
from tests.daemon.support.residency_plane import ResidencyPlane

CELLS = POLICY_CELLS[0]


class CachingPlane(ResidencyPlane):
    """A data plane whose policy has a result cache."""

    engine_settings = EngineSettings(cache_rows_max=64)

    def __init__(self, limits: ServingLimits | None = None) -> None:
        super().__init__(limits=limits)
        self.policy.residency = self.residency

    def asked(self, begun: Begun, sequence: int, value: float = 1.0, rows: int = 1, **fields: Any) -> list[bytes]:
        """Acts on observations of `value`; returns the frames of the only reply."""
        self.deliver(b"peer", act(begun, sequence, rows, **fields), observation(rows, value))
        self.run()
        (sent,) = self.transport.sent
        self.transport.sent.clear()
        return sent[1:]

    def is_cached(self, begun: Begun, sequence: int, value: float = 1.0, rows: int = 1, **fields: Any) -> bool:
        """Acts, and returns whether the cache answered. Whatever answers, the action is the sum of the observation."""
        batches = len(self.stable_engine.batches)
        head, action, _ = self.asked(begun, sequence, value, rows, **fields)
        is_cached = action_of(decode(head)).batch_close == BatchClose.CACHED
        assert is_cached == (len(self.stable_engine.batches) == batches)
        if fields.get("deterministic", True):
            assert np.frombuffer(action, np.float32).tolist() == [3 * value] * rows
        return is_cached

    @property
    def stable_engine(self) -> Any:
        return self.router.stable.engine

    def counts(self) -> tuple[int, int]:
        """Returns the hits and the misses."""
        return self.page.cells[CELLS.cache_hits], self.page.cells[CELLS.cache_misses]

    def sweep(self) -> None:
        assert isinstance(self.sessions, CachingSessions)
        self.residency.sweep(self.clock.now_ns)
        self.sessions.sweep_cache()


@pytest.fixture
def plane() -> CachingPlane:
    return CachingPlane()


@pytest.fixture
def begun(plane: CachingPlane) -> Begun:
    return plane.begin(plane.open())


def test_an_act_with_the_same_observations_gets_the_same_bytes_without_a_batch(
    plane: CachingPlane, begun: Begun
) -> None:
    other = plane.begin(plane.open(b"other"), peer=b"other")
    _, *first = plane.asked(begun, 2)
    plane.asked(begun, 3, value=2.0)
    _, *second = plane.asked(begun, 4)
    assert second == first
    plane.deliver(b"other", act(other, 2), observation())
    plane.run()
    # Also for another session. `batch_index` is the second output: both are answers of the first batch.
    assert plane.transport.sent[0][2:] == first
    assert plane.stable_engine.batches == [1, 1]
    assert plane.counts() == (2, 2)


def test_the_reply_says_that_no_batch_ran_and_when_it_was_made(plane: CachingPlane, begun: Begun) -> None:
    plane.asked(begun, 2)
    plane.clock.now_ns = 5_000
    action = action_of(decode(plane.asked(begun, 3)[0]))
    assert (action.batch_close, action.batch_rows, action.fallback, action.late_us) == (BatchClose.CACHED, 0, "", 0)
    assert action.received_ns == 5_000
    assert action.queued_ns <= action.dispatched_ns == action.ran_ns
    assert (action.sequence, action.episode, action.digest) == (3, begun.episode, plane.version.digest)


def test_a_hit_has_no_times_of_a_device(plane: CachingPlane, begun: Begun) -> None:
    plane.asked(begun, 2)
    # As a batch of a device leaves it.
    step = plane.sessions._groups[begun.episode].step
    step.fill(2, 5, 6, 7, 8, 1, 1, DeviceTimes(2_000, 50_000, 3_000))
    action = action_of(decode(plane.asked(begun, 3)[0]))
    assert action.batch_close == BatchClose.CACHED
    assert (action.copy_in_ns, action.compute_ns, action.copy_out_ns) == (0, 0, 0)


def test_an_act_of_several_rows_is_found_as_a_whole(plane: CachingPlane) -> None:
    welcome = plane.open()
    pair, single = plane.begin(welcome, 1, rows=2), plane.begin(welcome, 2)
    rows = [observation(value=value) for value in (1.0, 2.0)]

    def batches(sequence: int, begun: Begun, *frames: bytes) -> int:
        plane.deliver(b"peer", act(begun, sequence, len(frames)), b"".join(frames))
        assert codes(plane.replies()) == ["action"]
        return len(plane.stable_engine.batches)

    assert batches(3, pair, *rows) == 1
    assert batches(4, pair, *rows) == 1
    assert batches(5, pair, *reversed(rows)) == 2
    assert batches(6, single, rows[0]) == 3
    assert batches(7, pair, *rows) == batches(8, single, rows[0]) == 3


def test_both_paths_of_an_act_are_looked_up(plane: CachingPlane, begun: Begun) -> None:
    """An act in the form of the one before is not decoded."""
    step = ActStep(begun.session, begun.epoch, begun.episode, 1, [len(observation())])
    closes = []
    for sequence in range(2, 6):
        step.fill(sequence, 0, True)
        plane.transport.inbox.append([b"peer", bytes(step[0]), observation()])
        (reply,) = plane.replies()
        closes.append(action_of(reply).batch_close)
    assert closes == [BatchClose.ALL_SUBMITTED, *[BatchClose.CACHED] * 3]


@pytest.mark.parametrize("is_hit_first", [True, False])
def test_an_act_does_not_wait_for_a_lock_step_group_that_the_cache_has_answered(is_hit_first: bool) -> None:
    plane = CachingPlane(ServingLimits(rows_max=8, queue_rows_max=16, batch_wait_us_max=1_000))
    hit, missed = (plane.begin(plane.open(peer, lock_step=True), peer=peer) for peer in (b"hit", b"missed"))

    def closes(sequence: int, value: float) -> list[int]:
        """Both act, one after the other; that of `missed` is new to the cache."""
        one, other = (
            (b"hit", act(hit, sequence), observation()),
            (b"missed", act(missed, sequence), observation(value=value)),
        )
        sent = []
        for message in (one, other) if is_hit_first else (other, one):
            plane.deliver(*message)
            sent += plane.replies()
        return sorted(action_of(reply).batch_close for reply in sent)

    assert closes(2, 1.0) == [BatchClose.ALL_SUBMITTED] * 2
    assert closes(3, 2.0) == closes(4, 3.0) == sorted([BatchClose.ALL_SUBMITTED, BatchClose.CACHED])
    assert plane.stable_engine.batches == [2, 1, 1]
    plane.ask(b"hit", act(hit, 5), observation())
    assert plane.share.lock_step_running == 1
    plane.ask(b"hit", Goodbye(hit.session, hit.epoch, 6))
    assert plane.share.lock_step_running == 0


def test_acts_that_ask_for_a_sample_are_neither_answered_nor_kept(plane: CachingPlane, begun: Begun) -> None:
    assert not plane.is_cached(begun, 2, deterministic=False)
    assert not plane.is_cached(begun, 3)
    assert not plane.is_cached(begun, 4, deterministic=False)
    assert plane.is_cached(begun, 5)
    assert plane.counts() == (1, 1)


class RecurrentPlane(DataPlane):
    engine_settings = EngineSettings(cache_rows_max=64)


def test_a_recurrent_policy_is_never_answered_from_it() -> None:
    plane = RecurrentPlane(carries=True)
    begun = plane.begin(plane.open())
    actions = []
    for sequence in range(2, 6):
        plane.deliver(b"peer", act(begun, sequence), observation())
        plane.run()
        actions.append(np.frombuffer(plane.transport.sent.pop()[2], np.float32)[0])
    assert actions == [3, 6, 9, 12]
    assert plane.policy.cache is not None
    assert plane.policy.cache.rows == 0


def test_after_a_switch_each_version_answers_for_its_own_episodes(plane: CachingPlane, begun: Begun) -> None:
    welcome = plane.open(b"second")
    _, old_action, _ = plane.asked(begun, 2)
    plane.switch(1)
    new = plane.begin(welcome, peer=b"second")
    for sequence in (2, 3):
        plane.deliver(b"second", act(new, sequence), observation())
        plane.run()
    first, second = plane.transport.sent
    plane.transport.sent.clear()
    assert action_of(decode(first[1])).batch_close != BatchClose.CACHED
    assert action_of(decode(second[1])).batch_close == BatchClose.CACHED
    assert np.frombuffer(second[2], np.float32) == np.frombuffer(old_action, np.float32) + 100
    head, again, _ = plane.asked(begun, 3)
    assert (action_of(decode(head)).batch_close, again) == (BatchClose.CACHED, old_action)


def test_rows_of_different_versions_run(plane: CachingPlane) -> None:
    begun = plane.begin(plane.open(), rows=2)
    plane.asked(begun, 2, rows=2)
    plane.switch(1)
    for sequence in (3, 4):
        start = b"\1\0" if sequence == 3 else b""
        head, action, _ = plane.asked(begun, sequence, rows=2, episode_start=start)
        assert action_of(decode(head)).batch_close != BatchClose.CACHED
        assert np.frombuffer(action, np.float32).tolist() == [103, 3]
    # Both rows lease the same version again, which has not answered such an act yet.
    for sequence, close in ((5, BatchClose.ALL_SUBMITTED), (6, BatchClose.CACHED)):
        start = b"\0\1" if sequence == 5 else b""
        head, action, _ = plane.asked(begun, sequence, rows=2, episode_start=start)
        assert action_of(decode(head)).batch_close == close
        assert np.frombuffer(action, np.float32).tolist() == [103, 103]


def test_what_an_unloaded_version_answered_is_freed(plane: CachingPlane, begun: Begun) -> None:
    plane.asked(begun, 2)
    plane.sweep()
    cells = plane.page.cells
    assert cells[CELLS.cache_rows] == 1
    assert cells[CELLS.cache_bytes] > 0
    plane.switch(1)
    plane.switch(2)
    plane.sweep()
    assert cells[CELLS.cache_rows] == 1
    plane.clock.now_ns += 10**13
    plane.sweep()
    assert (cells[CELLS.cache_rows], cells[CELLS.cache_bytes]) == (0, 0)


def test_a_version_on_probation_runs_every_act(plane: CachingPlane, begun: Begun) -> None:
    plane.asked(begun, 2)
    plane.version.watched = True
    assert not plane.is_cached(begun, 3)
    assert not plane.is_cached(begun, 4, value=2.0)
    plane.version.watched = False
    assert plane.is_cached(begun, 5)
    assert not plane.is_cached(begun, 6, value=2.0)


class CountingTap:
    """Stands where the tap of a shadow stands."""

    def __init__(self) -> None:
        self.taken = self.paid = 0

    def take(self, version: object, memory: BatchMemory, groups: object) -> None:
        self.taken += 1

    def pay(self) -> None:
        self.paid = self.taken

    def close(self) -> None:
        pass


def test_a_shadow_sees_every_act(plane: CachingPlane, begun: Begun) -> None:
    plane.asked(begun, 2)
    assert plane.is_cached(begun, 3)
    tap = plane.policy.tap = CountingTap()
    plane.set_tap(tap)
    for sequence in (4, 5):
        assert not plane.is_cached(begun, sequence)
    assert (tap.taken, tap.paid) == (2, 2)
    plane.policy.tap = None
    plane.set_tap(None)
    assert plane.is_cached(begun, 6)
    assert tap.taken == 2


def test_a_run_that_fails_is_not_kept(plane: CachingPlane, begun: Begun) -> None:
    plane.stable_engine.fails = True
    assert codes([plane.ask(b"peer", act(begun, 2), observation())]) == ["internal"]
    plane.sweep()
    plane.stable_engine.fails = False
    assert not plane.is_cached(begun, 2)
    assert plane.is_cached(begun, 3)


def test_an_observation_that_is_refused_is_refused_each_time(plane: CachingPlane, begun: Begun) -> None:
    for sequence in (2, 3, 4):
        assert codes([plane.ask(b"peer", act(begun, sequence), observation(value=np.nan))]) == ["non_finite"]
    plane.sweep()
    assert plane.page.cells[CELLS.cache_rows] == 0


def test_a_repeated_act_gets_the_same_reply(plane: CachingPlane, begun: Begun) -> None:
    plane.asked(begun, 2)
    reply = plane.asked(begun, 3)
    plane.clock.now_ns += 5_000
    assert plane.asked(begun, 3) == reply
    assert plane.page.cells[page_cells.RESENDS] == 1
    assert plane.counts() == (1, 1)


def test_a_fallback_is_what_the_cache_answered_last_and_is_never_kept_itself() -> None:
    plane = CachingPlane()
    begun = plane.begin(plane.open(fallback=Fallback.LAST))
    plane.asked(begun, 2, value=1.0)
    plane.asked(begun, 3, value=2.0)
    assert plane.is_cached(begun, 4, value=1.0)
    plane.clock.now_ns = 1_000_000_000
    head, action, _ = plane.asked(begun, 5, value=7.0, budget_us=1, sent_ns=plane.clock.now_ns - 10_000)
    late = action_of(decode(head))
    assert (late.fallback, np.frombuffer(action, np.float32).tolist()) == (Fallback.LAST, [3.0])
    assert not plane.is_cached(begun, 6, value=7.0)


def test_an_act_whose_budget_has_ended_is_late_even_if_its_answer_is_known(plane: CachingPlane, begun: Begun) -> None:
    plane.asked(begun, 2)
    plane.clock.now_ns = 1_000_000_000
    late = act(begun, 3, budget_us=5, sent_ns=plane.clock.now_ns - 6_000)
    assert codes([plane.ask(b"peer", late, observation())]) == ["deadline_exceeded"]
    assert plane.is_cached(begun, 4, budget_us=5, sent_ns=plane.clock.now_ns - 4_000)


def test_a_budget_that_is_too_short_for_the_engine_is_met_from_the_cache(plane: CachingPlane, begun: Begun) -> None:
    plane.asked(begun, 2)
    plane.version.service.seed(1, 1_000_000, 1_000_000)
    assert plane.is_cached(begun, 3, budget_us=100)
    assert codes([plane.ask(b"peer", act(begun, 4, budget_us=100), observation(value=2.0))]) == ["deadline_exceeded"]


def test_an_act_that_replaces_a_waiting_one_runs_in_its_place() -> None:
    plane = CachingPlane(ServingLimits(rows_max=8, queue_rows_max=16, batch_wait_us_max=1_000))
    begun = plane.begin(plane.open())
    plane.asked(begun, 2)
    # Batches wait for this one.
    plane.begin(plane.open(b"other"), peer=b"other")
    for sequence in (3, 4):
        plane.deliver(b"peer", act(begun, sequence), observation(value=2.0 if sequence == 3 else 1.0))
    assert codes(plane.replies()) == ["superseded"]
    assert plane.scheduler.rows_waiting == 1
    plane.clock.now_ns += 1_000_000
    plane.loop.run_once([])
    (reply,) = plane.replies()
    assert action_of(reply).batch_close == BatchClose.WAIT_ELAPSED
    # It is known still, and what was replaced is not.
    assert plane.is_cached(begun, 5)
    plane.deliver(b"peer", act(begun, 6), observation(value=2.0))
    assert plane.replies() == []
    assert plane.counts() == (1, 3)


class Slots:
    """Slots of a group of the plane, and the client that writes to them."""

    def __init__(self, plane: CachingPlane, begun: Begun) -> None:
        self._plane = plane
        self._begun = begun
        self.region = SlotRegion(plane.version.slot_layout(1))
        plane.sessions._groups[begun.episode].slots = self.region

    def write(self, value: float, generation: int) -> None:
        slot = self.region.slots[0]
        slot.observations[0][:] = observation(value=value)
        write_generation(slot.view, 0, generation)

    def act(self, sequence: int, generation: int) -> None:
        self._plane.deliver(b"peer", act(self._begun, sequence, slot=1, generation=generation))


@pytest.fixture
def slots(plane: CachingPlane, begun: Begun) -> Iterator[Slots]:
    slots = Slots(plane, begun)
    yield slots
    slots.region.revoke()


def test_what_is_kept_of_an_act_in_a_slot_is_what_ran_whatever_is_written_there_meanwhile() -> None:
    plane = CachingPlane(ServingLimits(rows_max=8, queue_rows_max=16, batch_wait_us_max=1_000))
    begun = plane.begin(plane.open())
    slots = Slots(plane, begun)
    other = plane.open(b"other")
    # Batches wait for this one.
    plane.begin(other, peer=b"other")
    slots.write(1.0, generation=5)
    slots.act(2, generation=5)
    assert plane.replies() == []
    slots.write(2.0, generation=5)
    plane.clock.now_ns += 1_000_000
    plane.loop.run_once([])
    assert np.frombuffer(plane.transport.sent[0][2], np.float32).tolist() == [3.0]
    plane.transport.sent.clear()
    assert plane.is_cached(begun, 3, value=1.0)
    plane.deliver(b"peer", act(begun, 4), observation(value=2.0))
    assert plane.replies() == []
    assert plane.counts() == (1, 2)
    slots.region.revoke()


def test_acts_in_a_slot_and_in_the_packet_find_each_other(plane: CachingPlane, begun: Begun, slots: Slots) -> None:
    assert not plane.is_cached(begun, 2, value=1.0)
    slots.write(1.0, generation=5)
    slots.act(3, generation=5)
    (reply,) = plane.replies()
    assert (action_of(reply).batch_close, action_of(reply).slot) == (BatchClose.CACHED, 0)
    slots.write(2.0, generation=6)
    slots.act(4, generation=6)
    assert action_of(plane.replies()[0]).batch_close != BatchClose.CACHED
    assert plane.is_cached(begun, 5, value=2.0)


def test_a_slot_that_is_written_while_it_is_looked_up_is_stale(
    plane: CachingPlane, begun: Begun, slots: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane.asked(begun, 2, value=1.0)
    slots.write(1.0, generation=5)

    def write_and_tell() -> int:
        write_generation(slots.region.slots[0].view, 0, 6)
        return plane.clock()

    # It reads the clock once the act is admitted, before it copies the slot.
    monkeypatch.setattr(plane.sessions, "_clock", write_and_tell)
    slots.act(3, generation=5)
    assert codes(plane.replies()) == ["slot_stale"]
    # Nor is an answer kept that was not sent.
    slots.write(2.0, generation=7)
    slots.act(4, generation=7)
    assert codes(plane.replies()) == ["slot_stale"]
    assert plane.counts() == (0, 3)
    plane.sweep()
    assert plane.page.cells[CELLS.cache_rows] == 1


class LateCachingPlane(LatePlane):
    engine_settings = EngineSettings(cache_rows_max=64)


def test_an_act_that_replaces_a_running_one_runs_too_and_only_what_is_awaited_is_kept() -> None:
    plane = LateCachingPlane()
    begun = plane.begin(plane.open())
    plane.deliver(b"peer", act(begun, 2), observation(value=1))
    assert plane.replies() == []
    assert len(plane.finish()) == 1
    plane.deliver(b"peer", act(begun, 3), observation(value=2))
    assert plane.replies() == []
    plane.deliver(b"peer", act(begun, 4), observation(value=1))
    assert codes(plane.replies()) == ["superseded"]
    assert plane.finish() == []
    (message,) = plane.finish()
    assert np.frombuffer(message[2], np.float32).tolist() == [3.0]
    plane.deliver(b"peer", act(begun, 5), observation(value=1))
    assert action_of(plane.replies()[0]).batch_close == BatchClose.CACHED
    plane.deliver(b"peer", act(begun, 6), observation(value=2))
    assert plane.replies() == []


def test_a_version_that_is_out_is_not_answered_for(plane: CachingPlane, begun: Begun) -> None:
    plane.asked(begun, 2)
    plane.version.out = RemoteProtocolError(ErrorCode.ENGINE_OUT, "it keeps failing")
    assert codes([plane.ask(b"peer", act(begun, 3), observation())]) == ["engine_out"]


def test_hits_are_outcomes_but_no_batches(plane: CachingPlane, begun: Begun) -> None:
    for sequence in range(2, 7):
        plane.asked(begun, sequence)
    plane.page.flush()
    cells = plane.page.cells
    assert cells[CELLS.requests] == 5
    assert (cells[page_cells.EXECUTIONS], cells[page_cells.INFERENCES]) == (1, 1)
    assert plane.counts() == (4, 1)


class UncachedPlane(ResidencyPlane):
    """The same without a cache."""


ROWS = 2
Steps = list[tuple[tuple[int, int], bool, int, tuple[bool, ...], bool]]


@given(
    st.lists(
        st.tuples(
            st.tuples(st.integers(0, 1), st.integers(0, 1)),
            st.booleans(),
            st.sampled_from([0, 0, 0, 1, 2, 3]),
            st.tuples(st.booleans(), st.booleans()),
            st.booleans(),
        ),
        max_size=12,
    )
)
def test_a_daemon_with_a_cache_answers_as_one_without(steps: Steps) -> None:
    """Whatever is drawn, begun with or without seeds, and repeated in between. Only the number of the batch may differ."""
    answers = []
    for plane in (CachingPlane(), UncachedPlane()):
        begun = plane.begin(plane.open(), rows=ROWS)
        answered = []
        sequence = 1
        for values, deterministic, start, is_seeded, is_repeated in steps:
            mask = bytes([start & 1, start >> 1]) if start else b""
            seeds = [40 + row for row in range(sum(mask))] if is_seeded[0] else []
            sequence += 1
            message = act(begun, sequence, ROWS, deterministic=deterministic, episode_start=mask, seeds=seeds)
            frame = b"".join(observation(value=value) for value in values)
            for _ in range(1 + is_repeated):
                plane.deliver(b"peer", message, frame)
                plane.run()
                (sent,) = plane.transport.sent
                plane.transport.sent.clear()
                reply = decode(sent[1])
                assert isinstance(reply, Action | Error)
                answered.append((type(reply), reply.sequence, sent[2] if len(sent) > 2 else b""))
        group = plane.sessions._groups[begun.episode]
        answers.append((answered, group.acts, group.seeds.tolist(), group.started_at.tolist(), group.starting))
    assert answers[0] == answers[1]


class SmallCachingPlane(DataPlane):
    engine_settings = EngineSettings(cache_rows_max=6)


class EveryActGetsExactlyOneReplyWithACache(EveryActGetsExactlyOneReply):
    """The same, with a cache: nearly all acts of that test have the same observations."""

    def __init__(self) -> None:
        super().__init__()
        self.plane = SmallCachingPlane(
            ServingLimits(rows_max=4, queue_rows_max=6, sessions_max=3, episodes_max=2, batch_wait_us_max=50)
        )


TestEveryActGetsExactlyOneReplyWithACache = EveryActGetsExactlyOneReplyWithACache.TestCase


def test_without_a_cache_nothing_of_it_is_on_the_path() -> None:
    plane = UncachedPlane()
    assert not isinstance(plane.sessions, CachingSessions)
    assert plane.loop._runner.tap is None
    begun = plane.begin(plane.open())
    for sequence in (2, 3):
        plane.ask(b"peer", act(begun, sequence), observation())
    engine = plane.version.engine
    assert isinstance(engine, CountingEngine)
    assert engine.batches == [1, 1]
    assert plane.page.cells[CELLS.cache_misses] == 0
