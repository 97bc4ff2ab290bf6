"""The state of a recurrent policy: it begins at zero, belongs to one episode, and advances once for each act that runs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pillion_protocol import Begin, Begun, End, Error, Fallback
from pilliond.limits import ServingLimits
from tests.daemon.support.fakes import DataPlane, act, action_of, codes, observation


@pytest.fixture
def plane() -> DataPlane:
    """The action is the sum of all observations of the episode."""
    return DataPlane(carries=True)


def actions(
    plane: DataPlane, begun: Begun, sequence: int, value: float = 1.0, rows: int = 1, **fields: Any
) -> list[float]:
    """Acts once and returns the action of each row."""
    tensors = (observation(rows, value),)
    reply = plane.ask(b"peer", act(begun, sequence, rows, **fields), *tensors)
    action_of(reply)
    return last_actions(plane, begun)


def last_actions(plane: DataPlane, begun: Begun) -> list[float]:
    """Returns the last action of each row."""
    group = plane.sessions._groups[begun.episode]
    return [float(value) for value in np.frombuffer(group.last_outputs[0], np.float32)]


def test_each_act_continues_from_the_state_of_the_previous_one(plane: DataPlane) -> None:
    begun = plane.begin(plane.open())
    assert [actions(plane, begun, sequence) for sequence in (2, 3, 4)] == [[3.0], [6.0], [9.0]]


def test_groups_in_one_batch_have_states_of_their_own(plane: DataPlane) -> None:
    welcome = plane.open(lock_step=True)
    first, second = plane.begin(welcome, 1), plane.begin(welcome, 2, rows=2)
    actions(plane, first, 3, value=10)
    plane.deliver(b"peer", act(second, 4, rows=2), observation(2, value=2))
    plane.deliver(b"peer", act(first, 5), observation(value=1))
    plane.replies()
    assert plane.engine.batches == [1, 3]
    assert last_actions(plane, first) == [33.0]
    assert last_actions(plane, second) == [6.0, 6.0]
    assert actions(plane, second, 6, rows=2) == [9.0, 9.0]
    assert actions(plane, first, 7) == [36.0]


def test_a_repeated_act_advances_the_state_once(plane: DataPlane) -> None:
    begun = plane.begin(plane.open())
    actions(plane, begun, 2)
    assert actions(plane, begun, 3) == actions(plane, begun, 3) == [6.0]
    assert actions(plane, begun, 4) == [9.0]


def test_an_act_past_its_deadline_does_not_advance_the_state() -> None:
    plane = DataPlane(ServingLimits(rows_max=8, queue_rows_max=16, batch_wait_us_max=1_000), carries=True)
    welcome = plane.open(lock_step=True, fallback=Fallback.ZEROS)
    begun, other = plane.begin(welcome, 1), plane.begin(welcome, 2)
    for begin in (begun, other):
        plane.deliver(b"peer", act(begin, 3), observation())
    plane.replies()
    plane.deliver(b"peer", act(begun, 4, budget_us=300), observation())
    assert plane.replies() == []
    plane.clock.now_ns += 300_000
    assert action_of(*plane.replies()).fallback == Fallback.ZEROS
    plane.ask(b"peer", End(welcome.session, welcome.epoch, 5, other.episode))
    assert actions(plane, begun, 6) == [6.0]


def test_a_failed_batch_does_not_advance_the_state(plane: DataPlane) -> None:
    begun = plane.begin(plane.open())
    actions(plane, begun, 2)
    plane.engine.fails = True
    assert codes([plane.ask(b"peer", act(begun, 3), observation())]) == ["internal"]
    plane.engine.fails = False
    assert actions(plane, begun, 3) == [6.0]


def test_a_refused_observation_does_not_advance_the_state(plane: DataPlane) -> None:
    begun = plane.begin(plane.open())
    actions(plane, begun, 2)
    assert codes([plane.ask(b"peer", act(begun, 3), observation(value=math.nan))]) == ["non_finite"]
    assert actions(plane, begun, 4) == [6.0]


def test_a_row_that_begins_an_episode_begins_at_zero_and_the_others_continue(plane: DataPlane) -> None:
    begun = plane.begin(plane.open(), rows=3)
    actions(plane, begun, 2, rows=3)
    assert actions(plane, begun, 3, rows=3, episode_start=b"\0\1\0") == [6.0, 3.0, 6.0]
    assert actions(plane, begun, 4, rows=3) == [9.0, 6.0, 9.0]


def test_a_row_whose_first_act_failed_begins_at_zero_with_the_next_act(plane: DataPlane) -> None:
    begun = plane.begin(plane.open(), rows=2)
    actions(plane, begun, 2, rows=2)
    plane.engine.fails = True
    plane.ask(b"peer", act(begun, 3, rows=2, episode_start=b"\1\0"), observation(2))
    plane.engine.fails = False
    assert actions(plane, begun, 4, rows=2) == [3.0, 6.0]


def test_a_new_group_begins_at_zero(plane: DataPlane) -> None:
    welcome = plane.open()
    first = plane.begin(welcome, 1)
    actions(plane, first, 2)
    plane.ask(b"peer", End(welcome.session, welcome.epoch, 3, first.episode))
    assert actions(plane, plane.begin(welcome, 4), 5) == [3.0]


def test_the_memory_of_all_states_is_bounded_and_freed() -> None:
    plane = DataPlane(ServingLimits(rows_max=8, queue_rows_max=16, states_mb_max=0), carries=True)
    welcome = plane.open()
    refused = plane.ask(b"peer", Begin(welcome.session, welcome.epoch, 1, [0]))
    assert isinstance(refused, Error)
    assert (refused.code, refused.expected) == ("overloaded", "at most 0 MB for all episode groups")
    plane = DataPlane(carries=True)
    welcome = plane.open()
    begun = plane.begin(welcome, rows=4)
    assert plane.policy.state_bytes == 16
    plane.ask(b"peer", End(welcome.session, welcome.epoch, 2, begun.episode))
    assert plane.policy.state_bytes == 0


def test_a_policy_without_state_keeps_none() -> None:
    plane = DataPlane()
    begun = plane.begin(plane.open())
    assert plane.sessions._groups[begun.episode].states == []
    assert [actions(plane, begun, sequence) for sequence in (2, 3)] == [[3.0], [3.0]]
