"""Several policies in one serving process: the limits, counts and queue of one are not those of another."""

from __future__ import annotations

from typing import Any

import pytest

from pillion_protocol import Begin, Begun, Error, Hello, Welcome, decode, encode
from pilliond.core.routing import Router
from pilliond.core.served_policy import ServedPolicy
from pilliond.ipc.metrics_page import OUTCOMES, POLICY_CELLS, mixed_index
from pilliond.limits import VERSION_CELLS_PER_POLICY, PolicyLimits
from pilliond.settings.schema import EngineSettings
from pilliond.versions.loaded_version import Identity, Version
from tests.daemon.support.fakes import DIGEST, GAUSSIAN, SPEC, CountingEngine, DataPlane, act, codes, observation

LIMITS = PolicyLimits(rows_max=4, queue_rows_max=4)


def policy_of(number: int, limits: PolicyLimits = LIMITS) -> ServedPolicy:
    """Returns the policy of that number, with an engine of its own."""
    engine = CountingEngine(limits.rows_max, carries=True)
    index = number * VERSION_CELLS_PER_POLICY + 1
    identity = Identity(f"policy-{number}", "1.0.0", bytes([number]) + DIGEST[1:])
    return ServedPolicy(Router(Version(identity, SPEC, GAUSSIAN, engine, None, index)), limits, EngineSettings())


class SeveralPolicies(DataPlane):
    """A data plane that serves several policies of `policy_of`."""

    def __init__(self, *limits: PolicyLimits) -> None:
        self.policies = [policy_of(number, its) for number, its in enumerate(limits)]
        super().__init__()

    def served(self) -> list[ServedPolicy]:
        return self.policies

    def open_on(self, policy: str, peer: bytes = b"peer") -> Welcome:
        reply = self.ask(peer, Hello(0, 0, 1_000 + len(self.sessions), policy=policy, lock_step=False))
        assert isinstance(reply, Welcome), reply
        return reply


def test_a_full_queue_refuses_the_acts_of_its_own_policy_only() -> None:
    plane = SeveralPolicies(LIMITS, LIMITS)
    begun = {}
    for policy in ("policy-0", "policy-1"):
        welcome = plane.open_on(policy)
        begun[policy] = [plane.begin(welcome, sequence, rows=4) for sequence in (1, 2)]
    replies: list[Any] = []

    def admitted(group: Begun) -> bool:
        """Whether an act is admitted; it then waits in the queue."""
        found = plane.sessions.receive((b"peer", encode(act(group, 10, 4)), observation(4)), 0, replies)
        if found is not None:
            plane.scheduler.add(found, 0)
        return found is not None

    assert admitted(begun["policy-0"][0])
    assert not admitted(begun["policy-0"][1])
    refused = decode(replies[0][1])
    assert isinstance(refused, Error)
    assert (refused.code, refused.expected) == ("overloaded", "at most 4 rows")
    assert admitted(begun["policy-1"][0])
    assert not admitted(begun["policy-1"][1])


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"states_mb_max": 0}, "no memory is left for recurrent state"),
        ({"episodes_max": 1}, "too many episode groups in this session"),
        ({"rows_max": 1, "queue_rows_max": 1}, "wrong number of seeds"),
    ],
)
def test_the_limits_of_one_policy_do_not_bound_another(limit: dict[str, int], message: str) -> None:
    plane = SeveralPolicies(PolicyLimits(rows_max=8), PolicyLimits(**{"rows_max": 8, **limit}))
    wide, narrow = plane.open_on("policy-0"), plane.open_on("policy-1")
    assert (wide.limits.rows_max, narrow.limits.rows_max) == (8, limit.get("rows_max", 8))
    for sequence in (1, 2):
        plane.begin(wide, sequence, rows=8)
    replies = [plane.ask(b"peer", Begin(narrow.session, narrow.epoch, sequence, list(range(8)))) for sequence in (1, 2)]
    assert message in [reply.message for reply in replies if isinstance(reply, Error)]


def test_an_act_that_is_refused_counts_for_the_policy_of_its_session() -> None:
    plane = SeveralPolicies(LIMITS, LIMITS)
    begun = plane.begin(plane.open_on("policy-1"), rows=2)
    assert codes([plane.ask(b"peer", act(begun, 10, 1), observation())]) == ["rows_mismatch"]
    assert codes([plane.ask(b"peer", act(begun, 10, 2), observation(2))]) == ["action"]
    plane.page.flush()
    counted = [
        sum(plane.page.cells[cells.requests + index] for index in range(len(OUTCOMES))) for cells in POLICY_CELLS[:2]
    ]
    assert counted == [0, 2]


def test_states_and_groups_are_counted_for_their_own_policy_and_end_with_it() -> None:
    plane = SeveralPolicies(PolicyLimits(rows_max=8), PolicyLimits(rows_max=8))
    for policy in plane.policies:
        plane.begin(plane.open_on(policy.name, policy.name.encode()), rows=8, peer=policy.name.encode())
    first, second = plane.policies
    assert [(each.sessions_live, each.episodes_live, each.state_bytes) for each in (first, second)] == [(1, 1, 32)] * 2
    plane.sessions.drop_peer(b"policy-0")
    assert (first.sessions_live, first.episodes_live, first.state_bytes) == (0, 0, 0)
    assert (second.sessions_live, second.episodes_live, second.state_bytes) == (1, 1, 32)


def test_each_policy_has_metrics_indices_of_its_own() -> None:
    assert {mixed_index(index) for index in range(VERSION_CELLS_PER_POLICY)} == {0}
    assert mixed_index(VERSION_CELLS_PER_POLICY + 3) == VERSION_CELLS_PER_POLICY
