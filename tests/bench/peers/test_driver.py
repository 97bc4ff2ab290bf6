"""The driver of all compared clients checks every answer, and counts only those in the measured time."""

from __future__ import annotations

import time

import msgspec
import numpy as np
import pytest

from driver import Array, DriveRequest, ExpectedActions, Plan, drive

EXPECTED = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
PLAN = Plan(
    address="",
    clients=1,
    observation_dtype="float32",
    observation_shape=[2, 3],
    observations=np.arange(6, dtype=np.float32).tobytes(),
    action_dtype="float32",
    action_shape=[2],
    actions=EXPECTED.tobytes(),
    absolute=0.001,
    relative=0.0,
    attempt_s_max=1.0,
)


class CountingClient:
    """Returns the given actions one after the other, and counts its acts."""

    def __init__(self, actions: list[Array]) -> None:
        self.acts = 0
        self._actions = actions

    def act(self, observation: Array) -> tuple[Array, int]:
        assert observation.shape == (3,)
        action = self._actions[self.acts % len(self._actions)]
        self.acts += 1
        return action, 7

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("action", "matches"),
    [
        (EXPECTED[1], True),
        (EXPECTED[1] + np.float32(0.0005), True),
        (EXPECTED[1] + np.float32(0.002), False),
        (EXPECTED[0], False),
        (EXPECTED[1].astype(np.float64), False),
        (EXPECTED[1][:1], False),
    ],
)
def test_a_floating_point_action_may_differ_by_the_tolerance(action: Array, matches: bool) -> None:
    assert ExpectedActions(PLAN).matches(1, action) is matches


def test_an_integer_action_may_not_differ_at_all() -> None:
    plan = msgspec.structs.replace(
        PLAN, action_dtype="int64", action_shape=[], actions=np.array([2, 3]).tobytes(), absolute=10.0
    )
    assert ExpectedActions(plan).matches(1, np.asarray(3))
    assert not ExpectedActions(plan).matches(1, np.asarray(2))


def test_only_acts_answered_in_the_counted_time_count_but_every_answer_is_checked() -> None:
    client = CountingClient([EXPECTED[0], EXPECTED[0]])
    now_ns = time.monotonic_ns()
    result = drive(
        client, PLAN.observation_arrays(), ExpectedActions(PLAN), DriveRequest(now_ns + 20_000_000, now_ns + 80_000_000)
    )
    latency_ns = np.frombuffer(result.latency_ns, np.int64)
    assert 0 < len(latency_ns) < client.acts
    assert np.frombuffer(result.engine_ns, np.int64).tolist() == [7] * len(latency_ns)
    assert result.mismatches == client.acts // 2
