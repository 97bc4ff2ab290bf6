"""Sessions, scheduler and loop together, without sockets and without sleep."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pillion_protocol import (
    Act,
    Begin,
    Begun,
    End,
    Ended,
    Error,
    ErrorCode,
    Fallback,
    Goodbye,
    Hello,
    Message,
    Ping,
    Pong,
    Welcome,
    decode,
    encode,
)
from pillion_protocol.steps import ActStep
from pilliond.ipc import metrics_page
from pilliond.limits import (
    HEARTBEAT_MS,
    MESSAGES_PER_POLL_MAX,
    ROUNDS_PER_BATCH_MAX,
    SILENT_MS_MAX,
    TICK_MS,
    ServingLimits,
)
from pilliond.transport.interface import Sent
from tests.daemon.support.fakes import Bench, act, action_of, codes, observation

MS = 1_000_000


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_an_act_is_answered_with_the_outputs_of_its_own_rows(bench: Bench) -> None:
    welcome = bench.open()
    first, second = bench.begin(welcome, 1), bench.begin(welcome, 2, rows=2)
    bench.put(b"peer", act(first, 3), observation(value=1))
    bench.put(b"peer", act(second, 4, rows=2), observation(2, value=2))
    bench.wake()
    replies = {decode(bytes(message[1])).sequence: message for message in bench.transport.sent}
    assert np.frombuffer(replies[3][2], np.float32).tolist() == [3.0]
    assert np.frombuffer(replies[4][2], np.float32).tolist() == [6.0, 6.0]
    assert bench.engine.batches == [3]
    action = action_of(decode(bytes(replies[4][1])))
    assert (action.batch_rows, action.rows, action.digest) == (3, 2, bench.version.digest)


def test_what_does_not_fit_into_a_batch_is_run_in_the_next_without_another_message(bench: Bench) -> None:
    welcome = bench.open()
    groups = [bench.begin(welcome, sequence, rows=5) for sequence in (1, 2, 3)]
    for sequence, begun in enumerate(groups, 4):
        bench.put(b"peer", act(begun, sequence, rows=5), observation(5))
    assert codes(bench.pump()) == ["action", "action", "action"]
    assert bench.engine.batches == [5, 5, 5]


def test_what_a_carrier_has_but_the_poller_does_not_tell_of_is_taken_before_the_loop_sleeps(bench: Bench) -> None:
    begun = bench.begin(bench.open())
    bench.transport.is_told = False
    assert codes([bench.ask(b"peer", act(begun, 2), observation())]) == ["action"]


def test_every_time_that_its_timer_wakes_it_is_a_tick_however_long_one_takes(bench: Bench) -> None:
    ticks = []

    def tick() -> None:
        ticks.append(bench.clock.now_ns)
        bench.clock.now_ns += 3_000_000

    bench.loop.on_tick = tick
    start_ns = bench.clock.now_ns
    for number in range(10):
        bench.clock.now_ns = start_ns + number * TICK_MS * 1_000_000
        bench.loop.run_once([])
        bench.loop.run_once([])
    assert len(ticks) == 10


def test_messages_of_one_descriptor_make_one_batch(bench: Bench) -> None:
    welcome = bench.open()
    groups = [bench.begin(welcome, sequence) for sequence in (1, 2, 3, 4)]
    for sequence, begun in enumerate(groups, 5):
        bench.put(b"peer", act(begun, sequence), observation())
    assert codes(bench.pump()) == ["action"] * 4
    assert bench.engine.batches == [4]


def test_the_same_request_again_gets_the_same_reply_and_is_not_run_again(bench: Bench) -> None:
    begun = bench.begin(bench.open())
    bench.put(b"peer", act(begun, 2), observation())
    bench.wake()
    bench.put(b"peer", act(begun, 2), observation(value=9))
    bench.wake()
    first, second = bench.transport.sent
    assert first == second
    assert bench.engine.batches == [1]


def test_an_older_sequence_is_stale(bench: Bench) -> None:
    begun = bench.begin(bench.open())
    bench.ask(b"peer", act(begun, 5), observation())
    assert codes([bench.ask(b"peer", act(begun, 4), observation())]) == ["sequence_stale"]


def test_begin_sent_again_makes_no_second_group(bench: Bench) -> None:
    welcome = bench.open()
    assert bench.begin(welcome, 1) == bench.begin(welcome, 1)
    assert bench.sessions.episodes_live == 1


def test_a_number_that_was_used_for_another_request_is_stale(bench: Bench) -> None:
    welcome = bench.open()
    bench.begin(welcome, 1)
    assert codes([bench.ask(b"peer", Begin(welcome.session, welcome.epoch, 1, [5, 6]))]) == ["sequence_stale"]


def test_hello_sent_again_makes_no_second_session(bench: Bench) -> None:
    first = bench.ask(b"peer", Hello(0, 0, 77))
    assert bench.ask(b"peer", Hello(0, 0, 77)) == first
    assert len(bench.sessions) == 1


def test_a_second_hello_leaves_the_first_session_alone(bench: Bench) -> None:
    begun = bench.begin(bench.open())
    bench.ask(b"peer", Hello(0, 0, 99))
    assert codes([bench.ask(b"peer", act(begun, 2), observation())]) == ["action"]


def test_a_newer_act_takes_the_place_of_one_that_waits() -> None:
    bench = Bench(ServingLimits(rows_max=8, queue_rows_max=16, batch_wait_us_max=1_000))
    welcome = bench.open()
    begun, _other = bench.begin(welcome, 1), bench.begin(welcome, 2)
    bench.put(b"peer", act(begun, 3), observation(value=1))
    assert bench.pump() == []
    bench.put(b"peer", act(begun, 4), observation(value=2))
    (superseded,) = bench.pump()
    assert isinstance(superseded, Error)
    assert (superseded.code, superseded.sequence) == (ErrorCode.SUPERSEDED, 3)
    bench.clock.now_ns += 10_000
    bench.put(b"peer", act(begun, 5, budget_us=100), observation(value=2))
    assert codes(bench.pump()) == ["superseded"]
    assert bench.scheduler.deadline_ns() == bench.clock.now_ns + 50_000
    bench.clock.now_ns += 60_000
    bench.wake()
    (reply,) = bench.transport.sent
    assert np.frombuffer(reply[2], np.float32).tolist() == [6.0]
    assert bench.engine.batches == [1]


def test_work_whose_deadline_has_passed_is_not_executed() -> None:
    bench = Bench(ServingLimits(rows_max=8, queue_rows_max=16, batch_wait_us_max=1_000))
    welcome = bench.open()
    begun, _other = bench.begin(welcome, 1), bench.begin(welcome, 2)
    bench.put(b"peer", act(begun, 3, budget_us=100), observation())
    assert bench.pump() == []
    bench.clock.now_ns += 100_000
    assert codes(bench.pump()) == ["deadline_exceeded"]
    assert bench.engine.batches == []


@pytest.mark.parametrize(("fallback", "expected"), [(Fallback.ZEROS, 0.0), (Fallback.LAST, 3.0), (Fallback.SAFE, 0.5)])
def test_a_session_gets_the_fallback_that_it_declared(fallback: Fallback, expected: float) -> None:
    bench = Bench(ServingLimits(rows_max=8, queue_rows_max=16, batch_wait_us_max=1_000), safe_action=[0.5])
    welcome = bench.open(fallback=fallback)
    begun = bench.begin(welcome)
    bench.ask(b"peer", act(begun, 2), observation())
    bench.begin(welcome, 3)
    bench.put(b"peer", act(begun, 4, budget_us=100), observation(value=9))
    assert bench.pump() == []
    bench.clock.now_ns += 100_000
    bench.wake()
    (reply,) = bench.transport.sent
    action = action_of(decode(bytes(reply[1])))
    assert (action.fallback, action.batch_rows, action.sequence) == (fallback, 0, 4)
    assert np.frombuffer(reply[2], np.float32).tolist() == [expected]
    assert bench.engine.batches == [1]


def test_a_safe_fallback_without_a_safe_action_is_refused_at_the_handshake(bench: Bench) -> None:
    assert codes([bench.ask(b"peer", Hello(0, 0, 1, fallback=Fallback.SAFE))]) == ["no_safe_action"]


def test_start_marks_of_an_act_that_was_not_run_are_kept_for_the_next() -> None:
    bench = Bench(ServingLimits(rows_max=8, queue_rows_max=16, batch_wait_us_max=1_000))
    welcome = bench.open()
    begun = bench.begin(welcome, 1, rows=2)
    bench.ask(b"peer", act(begun, 2, rows=2), observation(2))
    bench.begin(welcome, 3)
    bench.put(b"peer", act(begun, 4, rows=2, budget_us=100, episode_start=b"\0\1", seeds=[42]), observation(2))
    bench.pump()
    bench.clock.now_ns += 100_000
    assert codes(bench.pump()) == ["deadline_exceeded"]
    bench.put(b"peer", act(begun, 5, rows=2), observation(2))
    bench.pump()
    bench.clock.now_ns += MS
    assert codes(bench.pump()) == ["action"]
    (group,) = [g for s in bench.sessions._sessions.values() for g in bench.sessions.groups_of(s) if g.rows == 2]
    assert group.seeds.tolist() == [0, 42]
    assert group.steps().tolist() == [2, 1]


def test_a_peer_that_never_stops_sending_does_not_keep_the_loop(bench: Bench) -> None:
    taken_max = (ROUNDS_PER_BATCH_MAX + 1) * MESSAGES_PER_POLL_MAX
    for _ in range(taken_max + 50):
        bench.transport.inbox.append([b"peer", b"garbage"])
    bench.loop.run_once(bench.poller.poll(0, 1))
    assert len(bench.transport.inbox) == 50
    assert len(bench.transport.sent) == taken_max


def test_where_another_has_something_too_one_message_of_each_is_taken_at_a_look(bench: Bench) -> None:
    for _ in range(ROUNDS_PER_BATCH_MAX * 2):
        bench.transport.inbox.append([b"peer", b"garbage"])
        bench.other_transport.inbox.append([b"other", b"garbage"])
    bench.loop.run_once(bench.poller.poll(0, 2))
    assert len(bench.transport.inbox) == len(bench.other_transport.inbox) == ROUNDS_PER_BATCH_MAX - 1


def test_a_non_finite_row_is_refused_alone(bench: Bench) -> None:
    welcome = bench.open()
    sound, poisoned = bench.begin(welcome, 1), bench.begin(welcome, 2, rows=2)
    bench.put(b"peer", act(poisoned, 3, rows=2), np.array([[1, 1, 1], [1, math.nan, 1]], np.float32).tobytes())
    bench.put(b"peer", act(sound, 4), observation(value=2))
    bench.wake()
    replies = {decode(bytes(message[1])).sequence: message for message in bench.transport.sent}
    error = decode(bytes(replies[3][1]))
    assert isinstance(error, Error)
    assert (error.code, error.actual) == (ErrorCode.NON_FINITE, "a NaN or an infinity in row 1")
    assert np.frombuffer(replies[4][2], np.float32).tolist() == [6.0]


def test_an_engine_that_fails_gives_typed_errors_and_goes_on(bench: Bench) -> None:
    begun = bench.begin(bench.open())
    bench.engine.fails = True
    reply = bench.ask(b"peer", act(begun, 2), observation())
    assert isinstance(reply, Error)
    assert (reply.code, reply.message) == (ErrorCode.INTERNAL, "the engine failed to run this batch")
    assert bench.events == ["engine_failed"]
    bench.engine.fails = False
    assert codes([bench.ask(b"peer", act(begun, 2), observation())]) == ["action"]


@pytest.mark.parametrize(
    ("fields", "tensors", "code"),
    [
        ({"rows": 2}, [observation(2)], "rows_mismatch"),
        ({}, [observation(2)], "shape_mismatch"),
        ({}, [observation()[:-1]], "shape_mismatch"),
        ({}, [np.zeros(3, np.float64).tobytes()], "shape_mismatch"),
        ({}, [], "shape_mismatch"),
        ({}, [observation(), observation()], "shape_mismatch"),
        ({"episode_start": b"\1\1"}, [observation()], "rows_mismatch"),
        ({"episode_start": b"\1", "seeds": [1, 2]}, [observation()], "rows_mismatch"),
        ({"seeds": [1]}, [observation()], "rows_mismatch"),
    ],
)
def test_an_act_that_does_not_fit_is_refused_and_the_session_goes_on(
    bench: Bench, fields: dict[str, Any], tensors: list[bytes], code: str
) -> None:
    begun = bench.begin(bench.open())
    reply = bench.ask(b"peer", act(begun, 2, **fields), *tensors)
    assert isinstance(reply, Error)
    assert reply.code == code
    assert reply.expected
    assert reply.actual
    assert codes([bench.ask(b"peer", act(begun, 3), observation())]) == ["action"]


def test_an_unknown_or_foreign_episode_is_refused(bench: Bench) -> None:
    mine = bench.begin(bench.open(b"me"), peer=b"me")
    other = bench.open(b"other")
    foreign = Act(other.session, other.epoch, 1, mine.episode, 1, 0, True)
    assert codes([bench.ask(b"other", foreign, observation())]) == ["episode_unknown"]
    assert codes([bench.ask(b"me", act(mine, 2), observation())]) == ["action"]


def test_another_epoch_and_an_unknown_session_are_told_apart(bench: Bench) -> None:
    welcome = bench.open()
    assert codes([bench.ask(b"peer", Ping(welcome.session, welcome.epoch + 1, 1))]) == ["epoch_stale"]
    assert codes([bench.ask(b"peer", Ping(welcome.session + 1, welcome.epoch, 1))]) == ["session_unknown"]
    assert isinstance(bench.ask(b"peer", Ping(welcome.session, welcome.epoch, 1)), Pong)


def test_a_client_that_says_what_only_a_daemon_says_is_refused(bench: Bench) -> None:
    welcome = bench.open()
    reply = bench.ask(b"peer", Ended(welcome.session, welcome.epoch, 9, 1, 1))
    assert codes([reply]) == ["unknown_message"]


def test_ended_episodes_and_closed_sessions_leave_nothing_behind(bench: Bench) -> None:
    welcome = bench.open()
    begun = bench.begin(welcome)
    bench.ask(b"peer", act(begun, 2), observation())
    ended = bench.ask(b"peer", End(welcome.session, welcome.epoch, 3, begun.episode))
    assert isinstance(ended, Ended)
    assert ended.acts == 1
    assert codes([bench.ask(b"peer", act(begun, 4), observation())]) == ["episode_unknown"]
    bench.begin(welcome, 5)
    assert isinstance(bench.ask(b"peer", Goodbye(welcome.session, welcome.epoch, 6)), Goodbye)
    assert (len(bench.sessions), bench.sessions.episodes_live, bench.sessions.lock_step_live) == (0, 0, 0)


def test_limits_on_sessions_groups_rows_and_waiting_rows_answer_overloaded_or_mismatch() -> None:
    limits = ServingLimits(rows_max=4, queue_rows_max=4, sessions_max=2, episodes_max=3, batch_wait_us_max=1_000)
    bench = Bench(limits)
    welcome = bench.open(b"a")
    bench.open(b"b")
    assert codes([bench.ask(b"c", Hello(0, 0, 5))]) == ["overloaded"]
    assert codes([bench.ask(b"a", Begin(welcome.session, 7, 1, []))]) == ["rows_mismatch"]
    assert codes([bench.ask(b"a", Begin(welcome.session, 7, 2, [0] * 5))]) == ["rows_mismatch"]
    groups = [bench.begin(welcome, 3 + index, rows=rows, peer=b"a") for index, rows in enumerate((3, 2, 1))]
    assert codes([bench.ask(b"a", Begin(welcome.session, 7, 9, [0]))]) == ["overloaded"]
    bench.put(b"a", act(groups[0], 10, rows=3), observation(3))
    bench.put(b"a", act(groups[1], 11, rows=2), observation(2))
    assert codes(bench.pump()) == ["overloaded"]


def test_a_silent_session_is_pinged_and_after_long_silence_ended(bench: Bench) -> None:
    welcome = bench.open()
    replies: list[Any] = []
    bench.sessions.sweep(bench.clock.now_ns + HEARTBEAT_MS * MS, replies)
    assert decode(replies.pop()[1]) == Ping(welcome.session, welcome.epoch, 0)
    bench.sessions.sweep(bench.clock.now_ns + HEARTBEAT_MS * MS + 1, replies)
    assert replies == []
    bench.sessions.sweep(bench.clock.now_ns + SILENT_MS_MAX * MS, replies)
    assert isinstance(decode(replies.pop()[1]), Goodbye)
    assert len(bench.sessions) == 0


def test_a_peer_that_is_gone_or_does_not_read_loses_its_sessions_and_nobody_elses(bench: Bench) -> None:
    gone = bench.begin(bench.open(b"gone"), peer=b"gone")
    bench.open(b"here")
    bench.transport.answers[b"gone"] = Sent.PEER_FULL
    bench.put(b"gone", act(gone, 2), observation())
    assert bench.pump() == []
    assert len(bench.sessions) == 1
    assert bench.page.cells[metrics_page.SESSIONS_DROPPED] == 1
    assert bench.events == ["peer_dropped"]


def test_draining_answers_what_arrived_refuses_what_is_new_and_says_goodbye() -> None:
    bench = Bench(ServingLimits(rows_max=8, queue_rows_max=16, batch_wait_us_max=1_000))
    welcome = bench.open()
    waiting, arriving = bench.begin(welcome, 1), bench.begin(welcome, 2)
    bench.begin(welcome, 3)
    bench.put(b"peer", act(waiting, 4), observation())
    assert bench.pump() == []
    bench.put(b"peer", act(arriving, 5), observation())
    bench.loop.drain("test")
    sent = [decode(bytes(message[1])) for message in bench.transport.sent]
    assert codes(sent) == ["action", "action", "goodbye"]
    assert len(bench.sessions) == 0
    bench.transport.sent.clear()
    assert codes([bench.ask(b"peer", Hello(0, 0, 5))]) == ["draining"]


@given(data=st.lists(st.binary(max_size=64), min_size=1, max_size=4))
def test_any_bytes_get_exactly_one_typed_error_and_hurt_nobody(data: list[bytes]) -> None:
    bench = Bench()
    begun = bench.begin(bench.open())
    bench.transport.inbox.append([b"stranger", *data])
    (reply,) = bench.pump()
    assert isinstance(reply, Error | Welcome)
    assert codes([bench.ask(b"peer", act(begun, 2), observation())]) == ["action"]


@pytest.mark.parametrize("between", [{"deterministic": False}, {"budget_us": 5}], ids=["drawn", "with a budget"])
def test_an_act_as_before_is_run_as_before_whatever_one_with_starts_asked_for_in_between(
    bench: Bench, between: dict[str, Any]
) -> None:
    begun = bench.begin(bench.open())
    step = ActStep(begun.session, begun.epoch, begun.episode, 1, [len(observation())])
    group = bench.sessions._groups[begun.episode]
    for sequence in (2, 4):
        step.fill(sequence, 0, True)
        bench.transport.inbox.append([b"peer", bytes(step[0]), observation()])
        assert codes(bench.pump()) == ["action"]
        assert (group.deterministic, group.budget_ns) == (True, 0)
        bench.ask(b"peer", act(begun, sequence + 1, episode_start=b"\1", **between), observation())


class EveryActGetsExactlyOneReply(RuleBasedStateMachine):
    """Whatever clients do, every act gets exactly one reply, and after a drain nothing is owed."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(
            ServingLimits(rows_max=4, queue_rows_max=6, sessions_max=3, episodes_max=2, batch_wait_us_max=50)
        )
        self.sequence = 0
        self.groups: list[Begun] = []
        self.owed: set[int] = set()
        self.welcomes: list[Welcome] = []

    def teardown(self) -> None:
        self._run(lambda: self.bench.loop.drain("teardown"))
        assert not self.owed, f"never answered: {self.owed}"
        assert self.bench.scheduler.rows_waiting == 0

    def _run(self, work: Any) -> None:
        work()
        for message in self.bench.transport.sent:
            self._take(decode(bytes(message[1])), message)
        self.bench.transport.sent.clear()

    def _take(self, reply: Message, frames: list[Any]) -> None:
        if isinstance(reply, Welcome):
            self.welcomes.append(reply)
        elif isinstance(reply, Begun):
            self.groups.append(reply)
        if reply.sequence in self.owed:
            self.owed.remove(reply.sequence)
        else:
            assert not codes([reply])[0].startswith("action"), "an action that nobody asked for"

    def _send(self, message: Message, *tensors: bytes) -> None:
        self.bench.transport.inbox.append([b"peer", encode(message), *tensors])

    def _next(self) -> int:
        self.sequence += 1
        return self.sequence

    @rule()
    def hello(self) -> None:
        self._send(Hello(0, 0, self._next()))
        self._run(self.bench.wake)

    @rule(pick=st.integers(0, 9), rows=st.integers(1, 4))
    def begin(self, pick: int, rows: int) -> None:
        if self.welcomes:
            welcome = self.welcomes[pick % len(self.welcomes)]
            self._send(Begin(welcome.session, welcome.epoch, self._next(), [0] * rows))
            self._run(self.bench.wake)

    @rule(pick=st.integers(0, 9), rows=st.integers(1, 4), budget_us=st.sampled_from([0, 10, 1_000]))
    def act_arrives(self, pick: int, rows: int, budget_us: int) -> None:
        if self.groups:
            group = self.groups[pick % len(self.groups)]
            sequence = self._next()
            self.owed.add(sequence)
            self._send(act(group, sequence, rows, budget_us=budget_us), observation(rows))

    @rule(pick=st.integers(0, 9))
    def end(self, pick: int) -> None:
        if self.groups:
            group = self.groups.pop(pick % len(self.groups))
            self._send(End(group.session, group.epoch, self._next(), group.episode))

    @rule(advance_us=st.integers(0, 60))
    def time_passes(self, advance_us: int) -> None:
        self.bench.clock.now_ns += advance_us * 1_000
        self._run(self.bench.wake)

    @invariant()
    def the_queue_is_bounded(self) -> None:
        assert self.bench.scheduler.rows_waiting <= self.bench.limits.queue_rows_max


TestEveryActGetsExactlyOneReply = EveryActGetsExactlyOneReply.TestCase
