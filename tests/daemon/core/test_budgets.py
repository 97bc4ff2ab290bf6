"""A budget counts from when the act was sent, where that is known; else from when it was read."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from pillion_protocol import Act, Action, Begun, Fallback, MessageType, decode, encode
from pillion_protocol.steps import ActStep
from pilliond.core.action_steps import late_reply
from pilliond.ipc import metrics_page as page_cells
from pilliond.limits import NEVER_NS, SENT_AGE_NS_MAX
from tests.daemon.support.fakes import DataPlane, act, action_of, codes, observation
from tests.harness import head

NOW_NS = 10 * SENT_AGE_NS_MAX
BUDGET_US = 100
BUDGET_NS = BUDGET_US * 1_000
SEQUENCE_AT = len(b"\x05\x9d\xcf") + 8 + len(b"\xcf") + 8 + len(b"\xcf")
"""Where the sequence begins in the head of an `ActStep`."""


@pytest.fixture
def plane() -> DataPlane:
    """A data plane whose clock has been running for a while."""
    plane = DataPlane()
    plane.clock.now_ns = NOW_NS
    return plane


class Actor:
    """An episode group of one row. Its acts are laid out as the Python client lays them out."""

    def __init__(self, plane: DataPlane, begun: Begun) -> None:
        self._plane = plane
        self.step = ActStep(begun.session, begun.epoch, begun.episode, 1, [len(observation())])
        self.group = plane.sessions._groups[begun.episode]
        self.sequence = 10

    def act(self, budget_us: int, sent_ns: int, head: bytes | None = None) -> str:
        """Acts with `head` or in the usual form. Returns a word for the reply, or "" if the act waits."""
        self.sequence += 1
        self.step.fill(self.sequence, budget_us, True, sent_ns)
        self._plane.transport.inbox.append([b"peer", head or bytes(self.step[0]), observation()])
        return ", ".join(codes(self._plane.replies()))


@pytest.fixture
def actor(plane: DataPlane) -> Actor:
    return Actor(plane, plane.begin(plane.open()))


def counted(plane: DataPlane) -> tuple[int, int]:
    """Returns how many budgets counted from when the act was sent, and how many from when it was read."""
    return plane.page.cells[page_cells.BUDGETS_SENT], plane.page.cells[page_cells.BUDGETS_READ]


ONCE_AND_AGAIN = pytest.mark.parametrize("acts_before", [0, 1], ids=["the general path", "the short path"])
"""The first act with a budget is decoded. One like it takes the short path."""


@ONCE_AND_AGAIN
def test_a_budget_counts_from_when_the_act_was_sent(plane: DataPlane, actor: Actor, acts_before: int) -> None:
    for _ in range(acts_before):
        assert actor.act(BUDGET_US, NOW_NS) == "action"
    assert actor.act(BUDGET_US, NOW_NS - BUDGET_NS + 1) == "action"
    assert actor.group.deadline_ns == NOW_NS + 1
    assert counted(plane) == (acts_before + 1, 0)


@ONCE_AND_AGAIN
def test_an_act_whose_budget_ended_before_it_was_read_is_never_run(
    plane: DataPlane, actor: Actor, acts_before: int
) -> None:
    for _ in range(acts_before):
        assert actor.act(BUDGET_US, NOW_NS) == "action"
    assert actor.act(BUDGET_US, NOW_NS - BUDGET_NS) == "deadline_exceeded"
    assert plane.engine.batches == [1] * acts_before
    assert actor.act(BUDGET_US, NOW_NS) == "action"


def test_it_gets_the_fallback_that_its_session_declared(plane: DataPlane) -> None:
    actor = Actor(plane, plane.begin(plane.open(fallback=Fallback.ZEROS)))
    actor.step.fill(11, BUDGET_US, True, NOW_NS - BUDGET_NS)
    plane.transport.inbox.append([b"peer", bytes(actor.step[0]), observation()])
    plane.run()
    (reply,) = plane.transport.sent
    action = action_of(decode(bytes(reply[1])))
    assert (action.fallback, action.late_us) == ("zeros", 0)
    assert np.frombuffer(reply[2], np.float32).tolist() == [0.0]
    assert plane.engine.batches == []


@ONCE_AND_AGAIN
@pytest.mark.parametrize(
    "sent_ns",
    [0, NOW_NS + 1, NOW_NS - SENT_AGE_NS_MAX - 1, 1, 2**63 - 1],
    ids=["unknown", "in the future", "too long ago", "of a clock that just began", "the greatest"],
)
def test_a_time_that_cannot_be_of_this_clock_counts_as_unknown(
    plane: DataPlane, actor: Actor, sent_ns: int, acts_before: int
) -> None:
    for _ in range(acts_before):
        assert actor.act(BUDGET_US, sent_ns) == "action"
    assert actor.act(BUDGET_US, sent_ns) == "action"
    assert actor.group.deadline_ns == NOW_NS + BUDGET_NS
    assert counted(plane) == (0, acts_before + 1)


def test_the_longest_time_that_an_act_may_have_been_under_way_still_counts(plane: DataPlane, actor: Actor) -> None:
    budget_us = SENT_AGE_NS_MAX // 1_000
    assert actor.act(budget_us + 1, NOW_NS - SENT_AGE_NS_MAX) == "action"
    assert actor.act(budget_us, NOW_NS - SENT_AGE_NS_MAX) == "deadline_exceeded"
    assert counted(plane) == (2, 0)


def test_a_time_without_a_budget_has_no_effect(plane: DataPlane, actor: Actor) -> None:
    for _ in range(2):
        assert actor.act(0, 1) == "action"
        assert actor.group.deadline_ns == NEVER_NS
    assert counted(plane) == (0, 0)


def test_acts_with_and_without_a_budget_or_a_time_may_follow_in_any_order(plane: DataPlane, actor: Actor) -> None:
    kinds = [(0, 0), (BUDGET_US, 0), (BUDGET_US, NOW_NS), (0, NOW_NS)]
    for before in kinds:
        for budget_us, sent_ns in kinds:
            assert actor.act(*before) == "action"
            for _ in range(2):
                assert actor.act(budget_us, sent_ns) == "action"
                assert actor.group.deadline_ns == (NOW_NS + BUDGET_NS if budget_us else NEVER_NS)
    assert len(plane.sessions._steps) == 1
    plane.sessions.close(actor.group.session)
    assert not plane.sessions._steps


@pytest.mark.parametrize("acts_before", [0, 2])
def test_a_time_beyond_the_range_of_the_wire_is_malformed_on_either_path(actor: Actor, acts_before: int) -> None:
    for _ in range(acts_before):
        assert actor.act(BUDGET_US, NOW_NS) == "action"
    assert actor.act(BUDGET_US, 2**63) == "malformed"
    assert actor.act(BUDGET_US, NOW_NS) == "action"


def test_a_time_in_another_width_is_read_by_the_general_path(plane: DataPlane, actor: Actor) -> None:
    """The head has the length of the short path's layout, but not its form."""
    for _ in range(2):
        assert actor.act(BUDGET_US, NOW_NS) == "action"
    usual = bytes(actor.step[0])
    before = usual[:SEQUENCE_AT] + (13).to_bytes(8, "big") + usual[SEQUENCE_AT + 8 : -9]
    assert actor.act(BUDGET_US, NOW_NS, before + b"\xce" + bytes(8)) == "malformed"
    assert actor.act(BUDGET_US, NOW_NS, before + b"\xd3" + NOW_NS.to_bytes(8, "big")) == "action"
    assert counted(plane) == (3, 0)


# Older clients, and clients that lay heads out otherwise


def test_an_act_of_an_older_client_counts_from_reading(plane: DataPlane) -> None:
    """Twelve fields, in the shortest form: the bytes that a client sent before there was a thirteenth."""
    begun = plane.begin(plane.open())
    for sequence in (2, 3):
        fields: list[Any] = [begun.session, begun.epoch, sequence, begun.episode, 1, BUDGET_US, True, b"", [], "", 0, 0]
        plane.transport.inbox.append([b"peer", head(MessageType.ACT, fields), observation()])
        assert codes(plane.replies()) == ["action"]
        assert plane.sessions._groups[begun.episode].deadline_ns == NOW_NS + BUDGET_NS
    assert counted(plane) == (0, 2)


def test_the_short_path_of_an_older_client_counts_from_reading(plane: DataPlane, actor: Actor) -> None:
    """Without a time, a head has exactly the older layout, with a budget too."""
    for number in range(3):
        plane.clock.now_ns += 1
        assert actor.act(BUDGET_US, 0) == "action"
        assert actor.group.deadline_ns == NOW_NS + 1 + number + BUDGET_NS
    assert len(msgspec.msgpack.decode(bytes(actor.step[0])[1:])) == 12
    assert counted(plane) == (0, 3)


def test_a_time_of_an_act_in_the_general_form_counts(plane: DataPlane) -> None:
    begun = plane.begin(plane.open())
    sent = act(begun, 2, budget_us=BUDGET_US, sent_ns=NOW_NS - BUDGET_NS)
    assert codes([plane.ask(b"peer", sent, observation())]) == ["deadline_exceeded"]
    again = act(begun, 3, budget_us=BUDGET_US, sent_ns=NOW_NS - BUDGET_NS + 1)
    assert codes([plane.ask(b"peer", again, observation())]) == ["action"]
    assert isinstance(decode(encode(again)), Act)


# Late work


@pytest.mark.parametrize(("late_ns", "late_us"), [(1, 1), (999, 1), (1_000, 1), (1_001, 2), (5_000_000, 5_000)])
def test_a_late_reply_is_the_same_action_and_says_how_late_it_is(
    plane: DataPlane, actor: Actor, late_ns: int, late_us: int
) -> None:
    step = actor.group.step
    step.fill(11, 5, 6, 7, 8, 1, 1)
    reply = late_reply([b"peer", *step[1:]], late_ns)
    plain, late = decode(bytes(step[1])), decode(bytes(reply[1]))  # type: ignore[arg-type]
    assert isinstance(plain, Action)
    assert isinstance(late, Action)
    assert plain.late_us == 0
    assert late == msgspec.structs.replace(plain, late_us=late_us)
    assert [reply[0], *reply[2:]] == [b"peer", *step[2:]]


@ONCE_AND_AGAIN
@pytest.mark.parametrize(("run_us", "late_us"), [(BUDGET_US, 0), (BUDGET_US + 7, 7)])
def test_an_action_that_was_run_in_time_and_finished_late_says_so(
    plane: DataPlane, actor: Actor, run_us: int, late_us: int, acts_before: int
) -> None:
    for _ in range(acts_before):
        assert actor.act(BUDGET_US, NOW_NS) == "action"
    run = plane.engine.runs[1]

    def slow() -> None:
        run()
        plane.clock.now_ns += run_us * 1_000

    plane.engine.runs[1] = slow
    actor.sequence += 1
    actor.step.fill(actor.sequence, BUDGET_US, True, NOW_NS)
    plane.transport.inbox.append([b"peer", bytes(actor.step[0]), observation()])
    plane.run()
    (reply,) = plane.transport.sent
    action = action_of(decode(bytes(reply[1])))
    assert (action.late_us, action.fallback, action.batch_rows) == (late_us, "", 1)
    assert np.frombuffer(reply[2], np.float32).tolist() == [3.0]
    plane.transport.sent.clear()
    # Sent again, it gets the same bytes.
    plane.transport.inbox.append([b"peer", bytes(actor.step[0]), observation()])
    plane.run()
    assert [list(sent) for sent in plane.transport.sent] == [reply]
