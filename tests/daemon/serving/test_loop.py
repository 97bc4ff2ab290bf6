"""The serving loop with its sessions and scheduler, without sockets and without waiting."""

from __future__ import annotations

import math
from collections.abc import Callable
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
)
from pillion_protocol.steps import ActStep
from pilliond.ipc import metrics_page
from pilliond.limits import (
    HEARTBEAT_MS,
    MESSAGES_PER_POLL_MAX,
    ROUNDS_PER_BATCH_MAX,
    SILENT_MS_MAX,
    ServingLimits,
)
from pilliond.transport.interface import Sent
from tests.daemon.support.fakes import DataPlane, act, action_of, codes, observation

MS = 1_000_000


@pytest.fixture
def plane() -> DataPlane:
    return DataPlane()


def test_an_act_gets_the_outputs_of_its_own_rows(plane: DataPlane) -> None:
    welcome = plane.open()
    first, second = plane.begin(welcome, 1), plane.begin(welcome, 2, rows=2)
    plane.deliver(b"peer", act(first, 3), observation(value=1))
    plane.deliver(b"peer", act(second, 4, rows=2), observation(2, value=2))
    plane.run()
    replies = {decode(bytes(message[1])).sequence: message for message in plane.transport.sent}
    assert np.frombuffer(replies[3][2], np.float32).tolist() == [3.0]
    assert np.frombuffer(replies[4][2], np.float32).tolist() == [6.0, 6.0]
    assert plane.engine.batches == [3]
    action = action_of(decode(bytes(replies[4][1])))
    assert (action.batch_rows, action.rows, action.digest) == (3, 2, plane.version.digest)


def test_acts_that_do_not_fit_into_a_batch_run_in_the_next_without_another_message(plane: DataPlane) -> None:
    welcome = plane.open()
    groups = [plane.begin(welcome, sequence, rows=5) for sequence in (1, 2, 3)]
    for sequence, begun in enumerate(groups, 4):
        plane.deliver(b"peer", act(begun, sequence, rows=5), observation(5))
    assert codes(plane.replies()) == ["action", "action", "action"]
    assert plane.engine.batches == [5, 5, 5]


def test_a_message_that_the_poller_does_not_report_is_received_before_the_loop_sleeps(plane: DataPlane) -> None:
    begun = plane.begin(plane.open())
    plane.transport.is_reported = False
    assert codes([plane.ask(b"peer", act(begun, 2), observation())]) == ["action"]


class Host:
    """An event loop that remembers after which time to call."""

    def __init__(self) -> None:
        self.delay_s = 0.0

    def call_later(self, delay_s: float, *call: Any) -> None:
        self.delay_s = delay_s


@pytest.mark.parametrize(("took_ms", "left_ms"), [(0, 100), (30, 70), (100, 100), (250, 50)])
def test_ticks_are_aligned_however_long_one_takes(plane: DataPlane, took_ms: int, left_ms: int) -> None:
    host = Host()
    ticks = []

    def tick() -> None:
        ticks.append(plane.clock.now_ns)
        plane.clock.now_ns += took_ms * MS

    plane.loop.on_tick = tick
    plane.loop._tick_due_ns = plane.clock.now_ns
    plane.loop._tick_on(host)  # type: ignore[arg-type]
    assert host.delay_s == pytest.approx(left_ms / 1_000)
    plane.loop._tick_if_due()
    assert len(ticks) == 1
    plane.clock.now_ns += left_ms * MS
    plane.loop._tick_if_due()
    assert len(ticks) == 2


def test_waiting_messages_of_one_carrier_make_one_batch(plane: DataPlane) -> None:
    welcome = plane.open()
    groups = [plane.begin(welcome, sequence) for sequence in (1, 2, 3, 4)]
    for sequence, begun in enumerate(groups, 5):
        plane.deliver(b"peer", act(begun, sequence), observation())
    assert codes(plane.replies()) == ["action"] * 4
    assert plane.engine.batches == [4]


def test_a_repeated_request_gets_the_same_reply_and_runs_once(plane: DataPlane) -> None:
    begun = plane.begin(plane.open())
    plane.deliver(b"peer", act(begun, 2), observation())
    plane.run()
    plane.deliver(b"peer", act(begun, 2), observation(value=9))
    plane.run()
    first, second = plane.transport.sent
    assert first == second
    assert plane.engine.batches == [1]


def test_an_older_sequence_is_stale(plane: DataPlane) -> None:
    begun = plane.begin(plane.open())
    plane.ask(b"peer", act(begun, 5), observation())
    assert codes([plane.ask(b"peer", act(begun, 4), observation())]) == ["sequence_stale"]


def test_a_repeated_begin_makes_no_second_group(plane: DataPlane) -> None:
    welcome = plane.open()
    assert plane.begin(welcome, 1) == plane.begin(welcome, 1)
    assert plane.sessions.episodes_live == 1


def test_a_sequence_of_another_request_is_stale(plane: DataPlane) -> None:
    welcome = plane.open()
    plane.begin(welcome, 1)
    assert codes([plane.ask(b"peer", Begin(welcome.session, welcome.epoch, 1, [5, 6]))]) == ["sequence_stale"]


def test_a_repeated_hello_makes_no_second_session(plane: DataPlane) -> None:
    first = plane.ask(b"peer", Hello(0, 0, 77))
    assert plane.ask(b"peer", Hello(0, 0, 77)) == first
    assert len(plane.sessions) == 1


def test_a_second_hello_does_not_affect_the_first_session(plane: DataPlane) -> None:
    begun = plane.begin(plane.open())
    plane.ask(b"peer", Hello(0, 0, 99))
    assert codes([plane.ask(b"peer", act(begun, 2), observation())]) == ["action"]


def test_a_newer_act_supersedes_one_that_waits() -> None:
    plane = DataPlane(ServingLimits(rows_max=8, queue_rows_max=16, batch_wait_us_max=1_000))
    welcome = plane.open()
    begun, _other = plane.begin(welcome, 1), plane.begin(welcome, 2)
    plane.deliver(b"peer", act(begun, 3), observation(value=1))
    assert plane.replies() == []
    plane.deliver(b"peer", act(begun, 4), observation(value=2))
    (superseded,) = plane.replies()
    assert isinstance(superseded, Error)
    assert (superseded.code, superseded.sequence) == (ErrorCode.SUPERSEDED, 3)
    plane.clock.now_ns += 10_000
    plane.deliver(b"peer", act(begun, 5, budget_us=100), observation(value=2))
    assert codes(plane.replies()) == ["superseded"]
    assert plane.scheduler.deadline_ns() == plane.clock.now_ns + 50_000
    plane.clock.now_ns += 60_000
    plane.run()
    (reply,) = plane.transport.sent
    assert np.frombuffer(reply[2], np.float32).tolist() == [6.0]
    assert plane.engine.batches == [1]


def test_work_whose_deadline_has_passed_is_not_executed() -> None:
    plane = DataPlane(ServingLimits(rows_max=8, queue_rows_max=16, batch_wait_us_max=1_000))
    welcome = plane.open()
    begun, _other = plane.begin(welcome, 1), plane.begin(welcome, 2)
    plane.deliver(b"peer", act(begun, 3, budget_us=300), observation())
    assert plane.replies() == []
    plane.clock.now_ns += 300_000
    assert codes(plane.replies()) == ["deadline_exceeded"]
    assert plane.engine.batches == []


@pytest.mark.parametrize(("fallback", "expected"), [(Fallback.ZEROS, 0.0), (Fallback.LAST, 3.0), (Fallback.SAFE, 0.5)])
def test_a_session_gets_the_fallback_that_it_declared(fallback: Fallback, expected: float) -> None:
    plane = DataPlane(ServingLimits(rows_max=8, queue_rows_max=16, batch_wait_us_max=1_000), safe_action=[0.5])
    welcome = plane.open(fallback=fallback)
    begun = plane.begin(welcome)
    plane.ask(b"peer", act(begun, 2), observation())
    plane.begin(welcome, 3)
    plane.deliver(b"peer", act(begun, 4, budget_us=300), observation(value=9))
    assert plane.replies() == []
    plane.clock.now_ns += 300_000
    plane.run()
    (reply,) = plane.transport.sent
    action = action_of(decode(bytes(reply[1])))
    assert (action.fallback, action.batch_rows, action.sequence) == (fallback, 0, 4)
    assert np.frombuffer(reply[2], np.float32).tolist() == [expected]
    assert plane.engine.batches == [1]


def test_a_safe_fallback_without_a_safe_action_is_refused_at_the_handshake(plane: DataPlane) -> None:
    assert codes([plane.ask(b"peer", Hello(0, 0, 1, fallback=Fallback.SAFE))]) == ["no_safe_action"]


def test_episode_starts_of_an_act_that_did_not_run_apply_to_the_next_one() -> None:
    plane = DataPlane(ServingLimits(rows_max=8, queue_rows_max=16, batch_wait_us_max=1_000))
    welcome = plane.open()
    begun = plane.begin(welcome, 1, rows=2)
    plane.ask(b"peer", act(begun, 2, rows=2), observation(2))
    plane.begin(welcome, 3)
    plane.deliver(b"peer", act(begun, 4, rows=2, budget_us=300, episode_start=b"\0\1", seeds=[42]), observation(2))
    plane.replies()
    plane.clock.now_ns += 300_000
    assert codes(plane.replies()) == ["deadline_exceeded"]
    plane.deliver(b"peer", act(begun, 5, rows=2), observation(2))
    plane.replies()
    plane.clock.now_ns += MS
    assert codes(plane.replies()) == ["action"]
    (group,) = [g for s in plane.sessions._sessions.values() for g in plane.sessions.groups_of(s) if g.rows == 2]
    assert group.seeds.tolist() == [0, 42]
    assert group.steps().tolist() == [2, 1]


def test_a_peer_that_never_stops_sending_does_not_occupy_the_loop(plane: DataPlane) -> None:
    taken_max = (ROUNDS_PER_BATCH_MAX + 1) * MESSAGES_PER_POLL_MAX
    for _ in range(taken_max + 50):
        plane.transport.inbox.append([b"peer", b"garbage"])
    plane.loop.run_once(plane.poller.poll(0, 1))
    assert len(plane.transport.inbox) == 50
    assert len(plane.transport.sent) == taken_max


def test_carriers_with_messages_are_read_one_message_at_a_time_in_alternation(plane: DataPlane) -> None:
    for _ in range(ROUNDS_PER_BATCH_MAX * 2):
        plane.transport.inbox.append([b"peer", b"garbage"])
        plane.other_transport.inbox.append([b"other", b"garbage"])
    plane.loop.run_once(plane.poller.poll(0, 2))
    assert len(plane.transport.inbox) == len(plane.other_transport.inbox) == ROUNDS_PER_BATCH_MAX - 1


def test_a_non_finite_row_is_refused_and_other_acts_in_the_batch_are_not(plane: DataPlane) -> None:
    welcome = plane.open()
    finite, non_finite = plane.begin(welcome, 1), plane.begin(welcome, 2, rows=2)
    plane.deliver(b"peer", act(non_finite, 3, rows=2), np.array([[1, 1, 1], [1, math.nan, 1]], np.float32).tobytes())
    plane.deliver(b"peer", act(finite, 4), observation(value=2))
    plane.run()
    replies = {decode(bytes(message[1])).sequence: message for message in plane.transport.sent}
    error = decode(bytes(replies[3][1]))
    assert isinstance(error, Error)
    assert (error.code, error.actual) == (ErrorCode.NON_FINITE, "a NaN or an infinity in row 1")
    assert np.frombuffer(replies[4][2], np.float32).tolist() == [6.0]


def test_after_an_engine_failure_and_a_typed_error_the_next_act_is_answered(plane: DataPlane) -> None:
    begun = plane.begin(plane.open())
    plane.engine.fails = True
    reply = plane.ask(b"peer", act(begun, 2), observation())
    assert isinstance(reply, Error)
    assert (reply.code, reply.message) == (ErrorCode.INTERNAL, "the engine failed to run this act")
    ((event, fields),) = plane.events
    assert (event, fields["version"], fields["rows"]) == ("engine_failed", "counter@1.2.3", 1)
    plane.engine.fails = False
    assert codes([plane.ask(b"peer", act(begun, 2), observation())]) == ["action"]


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
def test_an_act_that_does_not_match_the_spec_is_refused_and_the_session_goes_on(
    plane: DataPlane, fields: dict[str, Any], tensors: list[bytes], code: str
) -> None:
    begun = plane.begin(plane.open())
    reply = plane.ask(b"peer", act(begun, 2, **fields), *tensors)
    assert isinstance(reply, Error)
    assert reply.code == code
    assert reply.expected
    assert reply.actual
    assert codes([plane.ask(b"peer", act(begun, 3), observation())]) == ["action"]


def test_an_episode_of_another_session_is_refused(plane: DataPlane) -> None:
    own = plane.begin(plane.open(b"me"), peer=b"me")
    other = plane.open(b"other")
    foreign = Act(other.session, other.epoch, 1, own.episode, 1, 0, True)
    assert codes([plane.ask(b"other", foreign, observation())]) == ["episode_unknown"]
    assert codes([plane.ask(b"me", act(own, 2), observation())]) == ["action"]


def test_a_stale_epoch_and_an_unknown_session_get_different_errors(plane: DataPlane) -> None:
    welcome = plane.open()
    assert codes([plane.ask(b"peer", Ping(welcome.session, welcome.epoch + 1, 1))]) == ["epoch_stale"]
    assert codes([plane.ask(b"peer", Ping(welcome.session + 1, welcome.epoch, 1))]) == ["session_unknown"]
    assert isinstance(plane.ask(b"peer", Ping(welcome.session, welcome.epoch, 1)), Pong)


def test_a_client_that_sends_a_message_of_the_daemon_is_refused(plane: DataPlane) -> None:
    welcome = plane.open()
    reply = plane.ask(b"peer", Ended(welcome.session, welcome.epoch, 9, 1, 1))
    assert codes([reply]) == ["unknown_message"]


def test_ended_episodes_and_closed_sessions_are_removed(plane: DataPlane) -> None:
    welcome = plane.open()
    begun = plane.begin(welcome)
    plane.ask(b"peer", act(begun, 2), observation())
    ended = plane.ask(b"peer", End(welcome.session, welcome.epoch, 3, begun.episode))
    assert isinstance(ended, Ended)
    assert ended.acts == 1
    assert codes([plane.ask(b"peer", act(begun, 4), observation())]) == ["episode_unknown"]
    plane.begin(welcome, 5)
    assert isinstance(plane.ask(b"peer", Goodbye(welcome.session, welcome.epoch, 6)), Goodbye)
    assert (len(plane.sessions), plane.sessions.episodes_live, plane.share.lock_step_live) == (0, 0, 0)


def test_past_the_limits_on_sessions_groups_and_rows_a_request_gets_overloaded_or_rows_mismatch() -> None:
    limits = ServingLimits(rows_max=4, queue_rows_max=4, sessions_max=2, episodes_max=3, batch_wait_us_max=1_000)
    plane = DataPlane(limits)
    welcome = plane.open(b"a")
    plane.open(b"b")
    assert codes([plane.ask(b"c", Hello(0, 0, 5))]) == ["overloaded"]
    assert codes([plane.ask(b"a", Begin(welcome.session, 7, 1, []))]) == ["rows_mismatch"]
    assert codes([plane.ask(b"a", Begin(welcome.session, 7, 2, [0] * 5))]) == ["rows_mismatch"]
    groups = [plane.begin(welcome, 3 + index, rows=rows, peer=b"a") for index, rows in enumerate((3, 2, 1))]
    assert codes([plane.ask(b"a", Begin(welcome.session, 7, 9, [0]))]) == ["overloaded"]
    plane.deliver(b"a", act(groups[0], 10, rows=3), observation(3))
    plane.deliver(b"a", act(groups[1], 11, rows=2), observation(2))
    assert codes(plane.replies()) == ["overloaded"]


def test_a_silent_session_is_pinged_and_later_ended(plane: DataPlane) -> None:
    welcome = plane.open()
    replies: list[Any] = []
    plane.sessions.sweep(plane.clock.now_ns + HEARTBEAT_MS * MS, replies)
    assert decode(replies.pop()[1]) == Ping(welcome.session, welcome.epoch, 0)
    plane.sessions.sweep(plane.clock.now_ns + HEARTBEAT_MS * MS + 1, replies)
    assert replies == []
    plane.sessions.sweep(plane.clock.now_ns + SILENT_MS_MAX * MS, replies)
    assert isinstance(decode(replies.pop()[1]), Goodbye)
    assert len(plane.sessions) == 0


def test_a_peer_that_does_not_read_loses_its_sessions_and_no_other_peer_does(plane: DataPlane) -> None:
    gone = plane.begin(plane.open(b"gone"), peer=b"gone")
    plane.open(b"here")
    plane.transport.answers[b"gone"] = Sent.PEER_FULL
    plane.deliver(b"gone", act(gone, 2), observation())
    assert plane.replies() == []
    assert len(plane.sessions) == 1
    assert plane.page.cells[metrics_page.SESSIONS_DROPPED] == 1
    assert [event for event, _ in plane.events] == ["peer_dropped"]


def test_draining_answers_what_has_arrived_sends_goodbye_and_refuses_new_sessions() -> None:
    plane = DataPlane(ServingLimits(rows_max=8, queue_rows_max=16, batch_wait_us_max=1_000))
    welcome = plane.open()
    waiting, arriving = plane.begin(welcome, 1), plane.begin(welcome, 2)
    plane.begin(welcome, 3)
    plane.deliver(b"peer", act(waiting, 4), observation())
    assert plane.replies() == []
    plane.deliver(b"peer", act(arriving, 5), observation())
    plane.loop.drain("test")
    sent = [decode(bytes(message[1])) for message in plane.transport.sent]
    assert codes(sent) == ["action", "action", "goodbye"]
    assert len(plane.sessions) == 0
    plane.transport.sent.clear()
    assert codes([plane.ask(b"peer", Hello(0, 0, 5))]) == ["draining"]


@given(data=st.lists(st.binary(max_size=64), min_size=1, max_size=4))
def test_any_bytes_get_exactly_one_typed_error_and_other_sessions_go_on(data: list[bytes]) -> None:
    plane = DataPlane()
    begun = plane.begin(plane.open())
    plane.transport.inbox.append([b"stranger", *data])
    (reply,) = plane.replies()
    assert isinstance(reply, Error | Welcome)
    assert codes([plane.ask(b"peer", act(begun, 2), observation())]) == ["action"]


@pytest.mark.parametrize("between", [{"deterministic": False}, {"budget_us": 5}], ids=["drawn", "with a budget"])
def test_a_short_path_act_is_deterministic_and_unbudgeted_whatever_the_act_before_asked_for(
    plane: DataPlane, between: dict[str, Any]
) -> None:
    begun = plane.begin(plane.open())
    step = ActStep(begun.session, begun.epoch, begun.episode, 1, [len(observation())])
    group = plane.sessions._groups[begun.episode]
    for sequence in (2, 4):
        step.fill(sequence, 0, True)
        plane.transport.inbox.append([b"peer", bytes(step[0]), observation()])
        assert codes(plane.replies()) == ["action"]
        assert (group.deterministic, group.budget_ns) == (True, 0)
        plane.ask(b"peer", act(begun, sequence + 1, episode_start=b"\1", **between), observation())


class EveryActGetsExactlyOneReply(RuleBasedStateMachine):
    """Whatever clients do, every request gets exactly one reply, at the latest when the loop drains."""

    def __init__(self) -> None:
        super().__init__()
        self.plane = DataPlane(
            ServingLimits(rows_max=4, queue_rows_max=6, sessions_max=3, episodes_max=2, batch_wait_us_max=50)
        )
        self.sequence = 0
        self.groups: list[Begun] = []
        self.unanswered: set[int] = set()
        """The sequence numbers of all requests without a reply."""
        self.welcomes: list[Welcome] = []

    def teardown(self) -> None:
        self._run(lambda: self.plane.loop.drain("teardown"))
        assert not self.unanswered, f"never answered: {self.unanswered}"
        assert self.plane.scheduler.rows_waiting == 0

    def _run(self, work: Callable[[], None]) -> None:
        """Runs the loop and checks what it sent."""
        work()
        for message in self.plane.transport.sent:
            self._check(decode(bytes(message[1])))
        self.plane.transport.sent.clear()

    def _check(self, reply: Message) -> None:
        if isinstance(reply, Welcome):
            self.welcomes.append(reply)
        elif isinstance(reply, Begun):
            self.groups.append(reply)
        if reply.sequence:
            assert reply.sequence in self.unanswered, f"a second reply, or one to no request: {reply}"
            self.unanswered.remove(reply.sequence)
        else:
            # The daemon's own message.
            assert isinstance(reply, Goodbye), reply

    def _send(self, message: Message, *tensors: bytes) -> None:
        self.unanswered.add(message.sequence)
        self.plane.deliver(b"peer", message, *tensors)

    def _next(self) -> int:
        self.sequence += 1
        return self.sequence

    @rule()
    def hello(self) -> None:
        self._send(Hello(0, 0, self._next()))
        self._run(self.plane.run)

    @rule(pick=st.integers(0, 9), rows=st.integers(1, 4))
    def begin(self, pick: int, rows: int) -> None:
        if self.welcomes:
            welcome = self.welcomes[pick % len(self.welcomes)]
            self._send(Begin(welcome.session, welcome.epoch, self._next(), [0] * rows))
            self._run(self.plane.run)

    @rule(pick=st.integers(0, 9), rows=st.integers(1, 4), budget_us=st.sampled_from([0, 10, 1_000]))
    def act_arrives(self, pick: int, rows: int, budget_us: int) -> None:
        if self.groups:
            group = self.groups[pick % len(self.groups)]
            self._send(act(group, self._next(), rows, budget_us=budget_us), observation(rows))

    @rule(pick=st.integers(0, 9))
    def end(self, pick: int) -> None:
        if self.groups:
            group = self.groups.pop(pick % len(self.groups))
            self._send(End(group.session, group.epoch, self._next(), group.episode))

    @rule(advance_us=st.integers(0, 60))
    def time_passes(self, advance_us: int) -> None:
        self.plane.clock.now_ns += advance_us * 1_000
        self._run(self.plane.run)

    @invariant()
    def the_queue_is_bounded(self) -> None:
        assert self.plane.scheduler.rows_waiting <= self.plane.limits.queue_rows_max


TestEveryActGetsExactlyOneReply = EveryActGetsExactlyOneReply.TestCase
