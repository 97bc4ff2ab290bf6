"""What a recurrent policy carries: each episode its own, from zero, once for each act that was run, and by no other way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pillion_protocol import Begin, Begun, End, Error, Fallback
from pilliond.limits import ServingLimits
from tests.daemon.support.fakes import Bench, act, action_of, codes, observation


@pytest.fixture
def bench() -> Bench:
    """Its policy's action is the sum of all that its episode has observed."""
    return Bench(carries=True)


def actions(bench: Bench, begun: Begun, sequence: int, value: float = 1.0, rows: int = 1, **fields: Any) -> list[float]:
    """What one act gives, a number for each row."""
    tensors = (observation(rows, value),)
    reply = bench.ask(b"peer", act(begun, sequence, rows, **fields), *tensors)
    action_of(reply)
    return last_actions(bench, begun)


def last_actions(bench: Bench, begun: Begun) -> list[float]:
    group = bench.sessions._groups[begun.episode]
    return [float(value) for value in np.frombuffer(group.last_outputs[0], np.float32)]


def test_each_act_goes_on_from_the_one_before(bench: Bench) -> None:
    begun = bench.begin(bench.open())
    assert [actions(bench, begun, sequence) for sequence in (2, 3, 4)] == [[3.0], [6.0], [9.0]]


def test_groups_in_one_batch_carry_their_own(bench: Bench) -> None:
    welcome = bench.open(lock_step=True)
    first, second = bench.begin(welcome, 1), bench.begin(welcome, 2, rows=2)
    actions(bench, first, 3, value=10)
    bench.put(b"peer", act(second, 4, rows=2), observation(2, value=2))
    bench.put(b"peer", act(first, 5), observation(value=1))
    bench.pump()
    assert bench.engine.batches == [1, 3]
    assert last_actions(bench, first) == [33.0]
    assert last_actions(bench, second) == [6.0, 6.0]
    assert actions(bench, second, 6, rows=2) == [9.0, 9.0]
    assert actions(bench, first, 7) == [36.0]


def test_the_same_act_again_does_not_advance_the_state_twice(bench: Bench) -> None:
    begun = bench.begin(bench.open())
    actions(bench, begun, 2)
    assert actions(bench, begun, 3) == actions(bench, begun, 3) == [6.0]
    assert actions(bench, begun, 4) == [9.0]


def test_an_act_that_came_too_late_does_not_advance_it() -> None:
    bench = Bench(ServingLimits(rows_max=8, queue_rows_max=16, batch_wait_us_max=1_000), carries=True)
    welcome = bench.open(lock_step=True, fallback=Fallback.ZEROS)
    begun, other = bench.begin(welcome, 1), bench.begin(welcome, 2)
    for begin in (begun, other):
        bench.put(b"peer", act(begin, 3), observation())
    bench.pump()
    bench.put(b"peer", act(begun, 4, budget_us=100), observation())
    assert bench.pump() == []
    bench.clock.now_ns += 100_000
    assert action_of(*bench.pump()).fallback == Fallback.ZEROS
    bench.ask(b"peer", End(welcome.session, welcome.epoch, 5, other.episode))
    assert actions(bench, begun, 6) == [6.0]


def test_a_batch_that_failed_does_not_advance_it(bench: Bench) -> None:
    begun = bench.begin(bench.open())
    actions(bench, begun, 2)
    bench.engine.fails = True
    assert codes([bench.ask(b"peer", act(begun, 3), observation())]) == ["internal"]
    bench.engine.fails = False
    assert actions(bench, begun, 3) == [6.0]


def test_an_observation_that_is_refused_does_not_advance_it(bench: Bench) -> None:
    begun = bench.begin(bench.open())
    actions(bench, begun, 2)
    assert codes([bench.ask(b"peer", act(begun, 3), observation(value=math.nan))]) == ["non_finite"]
    assert actions(bench, begun, 4) == [6.0]


def test_a_row_that_begins_an_episode_begins_at_zero_and_the_others_go_on(bench: Bench) -> None:
    begun = bench.begin(bench.open(), rows=3)
    actions(bench, begun, 2, rows=3)
    assert actions(bench, begun, 3, rows=3, episode_start=b"\0\1\0") == [6.0, 3.0, 6.0]
    assert actions(bench, begun, 4, rows=3) == [9.0, 6.0, 9.0]


def test_a_start_whose_act_failed_is_not_lost(bench: Bench) -> None:
    begun = bench.begin(bench.open(), rows=2)
    actions(bench, begun, 2, rows=2)
    bench.engine.fails = True
    bench.ask(b"peer", act(begun, 3, rows=2, episode_start=b"\1\0"), observation(2))
    bench.engine.fails = False
    assert actions(bench, begun, 4, rows=2) == [3.0, 6.0]


def test_a_new_group_begins_at_zero(bench: Bench) -> None:
    welcome = bench.open()
    first = bench.begin(welcome, 1)
    actions(bench, first, 2)
    bench.ask(b"peer", End(welcome.session, welcome.epoch, 3, first.episode))
    assert actions(bench, bench.begin(welcome, 4), 5) == [3.0]


def test_what_all_groups_carry_is_bounded_and_given_back() -> None:
    bench = Bench(ServingLimits(rows_max=8, queue_rows_max=16, states_mb_max=0), carries=True)
    welcome = bench.open()
    refused = bench.ask(b"peer", Begin(welcome.session, welcome.epoch, 1, [0]))
    assert isinstance(refused, Error)
    assert (refused.code, refused.expected) == ("overloaded", "at most 0 MB for all episode groups")
    bench = Bench(carries=True)
    welcome = bench.open()
    begun = bench.begin(welcome, rows=4)
    assert bench.sessions._state_bytes == 16
    bench.ask(b"peer", End(welcome.session, welcome.epoch, 2, begun.episode))
    assert bench.sessions._state_bytes == 0


def test_a_policy_without_state_carries_nothing() -> None:
    bench = Bench()
    begun = bench.begin(bench.open())
    assert bench.sessions._groups[begun.episode].states == []
    assert [actions(bench, begun, sequence) for sequence in (2, 3)] == [[3.0], [3.0]]
