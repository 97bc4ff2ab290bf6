"""Residency: which version an episode leases, how a batch keeps versions apart, and when a version is unloaded."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from pillion_protocol import Begin, Begun, End, Error, Goodbye, Spec, TensorSpec
from pilliond.limits import ServingLimits
from pilliond.settings.schema import VersionSettings
from tests.daemon.support.fakes import SPEC, WIDTH, act, action_of, codes, observation
from tests.daemon.support.residency_plane import NS_PER_S, ResidencyPlane


@pytest.fixture
def plane() -> ResidencyPlane:
    return ResidencyPlane()


def test_an_episode_keeps_its_version_through_a_switch_and_the_next_one_gets_the_new_version(
    plane: ResidencyPlane,
) -> None:
    welcome = plane.open()
    old = plane.begin(welcome, 1)
    second = plane.switch(1)
    new = plane.begin(welcome, 4)
    assert (old.leases[0].version, new.leases[0].version) == ("1.0.0", "1.1.0")
    for sequence in (5, 7, 9):
        action, numbers = plane.act_on_ones(old, sequence)
        assert (action.digest, numbers) == (plane.version.digest, [3.0])
        action, numbers = plane.act_on_ones(new, sequence + 1)
        assert (action.digest, numbers) == (second.digest, [103.0])


def test_a_batch_never_mixes_the_versions_of_two_groups() -> None:
    plane = ResidencyPlane(limits=ServingLimits(rows_max=8, queue_rows_max=16, batch_wait_us_max=1_000))
    welcome = plane.open()
    old = plane.begin(welcome, 1)
    second = plane.switch(1)
    new = plane.begin(welcome, 2)
    plane.deliver(b"peer", act(old, 3), observation())
    plane.deliver(b"peer", act(new, 4), observation())
    answers = [action_of(message) for message in plane.replies()]
    assert {(action.episode, action.digest, action.batch_rows) for action in answers} == {
        (old.episode, plane.version.digest, 1),
        (new.episode, second.digest, 1),
    }


def test_rows_that_begin_an_episode_switch_and_the_others_keep_their_version(plane: ResidencyPlane) -> None:
    group = plane.begin(plane.open(), 1, rows=4)
    plane.act_on_ones(group, 2, 4)
    second = plane.switch(1)
    action, numbers = plane.act_on_ones(group, 3, 4, episode_start=b"\0\1\0\1")
    assert numbers == [3.0, 103.0, 3.0, 103.0]
    assert [lease.digest for lease in action.leases] == [plane.version.digest, second.digest]
    assert action.row_leases == [0, 1, 0, 1]
    action, numbers = plane.act_on_ones(group, 4, 4)
    assert (numbers, action.row_leases) == ([3.0, 103.0, 3.0, 103.0], [0, 1, 0, 1])


def test_a_group_whose_last_row_switches_has_one_version_again_and_the_first_action_names_its_lease(
    plane: ResidencyPlane,
) -> None:
    group = plane.begin(plane.open(), 1, rows=2)
    plane.act_on_ones(group, 2, 2)
    second = plane.switch(1)
    plane.act_on_ones(group, 3, 2, episode_start=b"\1\0")
    action, numbers = plane.act_on_ones(group, 4, 2, episode_start=b"\0\1")
    assert (numbers, action.digest, action.row_leases) == ([103.0] * 2, second.digest, [])
    assert [lease.version for lease in action.leases] == ["1.1.0"]
    action, numbers = plane.act_on_ones(group, 5, 2)
    assert (numbers, action.digest, action.leases) == ([103.0] * 2, second.digest, [])
    assert (plane.version.leases, second.leases) == (0, 1)


def test_rows_of_a_mixed_version_group_draw_as_they_would_alone(plane: ResidencyPlane) -> None:
    group = plane.begin(plane.open(), 1, rows=2)
    plane.act_on_ones(group, 2, 2)
    plane.switch(1)
    _, both = plane.act_on_ones(group, 3, 2, episode_start=b"\0\1", seeds=[77], deterministic=False)
    alone = ResidencyPlane()
    begun = alone.begin(alone.open(), 1, rows=2)
    alone.act_on_ones(begun, 2, 2)
    _, one = alone.act_on_ones(begun, 3, 2, episode_start=b"\0\1", seeds=[77], deterministic=False)
    assert both[0] == one[0]
    assert both[1] == pytest.approx(one[1] + 100.0, abs=1e-4)


def test_a_repeated_act_that_changed_the_leases_gets_the_same_reply(plane: ResidencyPlane) -> None:
    group = plane.begin(plane.open(), 1, rows=2)
    plane.act_on_ones(group, 2, 2)
    plane.switch(1)
    first = plane.act_on_ones(group, 3, 2, episode_start=b"\0\1")
    again = plane.act_on_ones(group, 3, 2, episode_start=b"\0\1")
    assert first == again


def test_an_old_version_is_unloaded_with_its_last_lease_but_the_previous_stable_one_stays(
    plane: ResidencyPlane,
) -> None:
    welcome = plane.open()
    old = plane.begin(welcome, 1)
    plane.switch(1)
    plane.switch(2)
    assert plane.sweep_after(1) == []
    plane.ask(b"peer", End(welcome.session, welcome.epoch, 2, old.episode))
    assert plane.sweep_after(1) == [b"\0"]
    assert plane.sweep_after(1) == []
    assert {version.identity.version for version in plane.residency.versions()} == {"1.1.0", "1.2.0"}


def test_an_unloaded_version_frees_its_memory_even_if_a_group_leased_it() -> None:
    plane = ResidencyPlane(VersionSettings(old_max=0))
    engine = weakref.ref(plane.version.engine)
    begun = plane.begin(plane.open(), 1)
    plane.act_on_ones(begun, 2)
    plane.switch(1)
    assert plane.sweep_after(0) == [b"\0"]
    plane.version = None  # type: ignore[assignment]
    gc.collect()
    assert engine() is None


@pytest.mark.parametrize(
    ("bounds", "seconds"),
    [(VersionSettings(old_max=0), 0), (VersionSettings(old_mb_max=0), 0), (VersionSettings(lease_s_max=60), 61)],
)
def test_past_a_bound_an_act_gets_version_gone_and_never_another_version(
    bounds: VersionSettings, seconds: float
) -> None:
    plane = ResidencyPlane(bounds)
    welcome = plane.open()
    begun = plane.begin(welcome, 1, rows=2)
    plane.act_on_ones(begun, 2, 2)
    plane.switch(1)
    plane.sweep_after(seconds)
    for sequence, fields in ((3, {}), (4, {"episode_start": b"\1\0"})):
        reply = plane.ask(b"peer", act(begun, sequence, 2, **fields), observation(2))
        assert codes([reply]) == ["version_gone"]
    # The refusals changed nothing. A group whose rows all begin an episode leases the stable version.
    action, numbers = plane.act_on_ones(begun, 5, 2, episode_start=b"\1\1")
    assert (action.digest[0], numbers) == (1, [103.0, 103.0])


def test_a_lease_holds_until_its_bound() -> None:
    plane = ResidencyPlane(VersionSettings(lease_s_max=60))
    begun = plane.begin(plane.open(), 1)
    plane.switch(1)
    assert plane.sweep_after(59) == []
    assert plane.act_on_ones(begun, 2)[1] == [3.0]


def test_an_act_that_waits_while_its_version_is_retired_still_runs_on_it() -> None:
    limits = ServingLimits(rows_max=8, queue_rows_max=16, batch_wait_us_max=1_000_000)
    plane = ResidencyPlane(VersionSettings(old_max=0), limits)
    welcome = plane.open()
    waits, other = plane.begin(welcome, 1), plane.begin(welcome, 2)
    plane.deliver(b"peer", act(waits, 3), observation())
    assert plane.replies() == []
    plane.switch(1)
    assert plane.sweep_after(0) == []
    assert codes([plane.ask(b"peer", act(other, 4), observation())]) == ["version_gone"]
    plane.clock.now_ns += NS_PER_S
    (answer,) = plane.replies()
    assert action_of(answer).digest == plane.version.digest
    assert plane.sweep_after(0) == [b"\0"]


def test_a_session_that_does_not_fit_the_new_version_stays_on_the_old_one_and_new_sessions_get_the_new_one(
    plane: ResidencyPlane,
) -> None:
    plain, pinned = plane.open(b"peer"), plane.open(b"other", version_range="<1.1")
    wider = Spec([TensorSpec("observation", "float32", [WIDTH])], [*SPEC.outputs, TensorSpec("log_std", "float32", [])])
    plane.switch(1)
    begun = plane.begin(plain, 1)
    assert begun.leases[0].version == "1.1.0"
    assert plane.begin(pinned, 1, peer=b"other").leases[0].version == "1.0.0"
    plane.switch(2, wider)
    assert plane.begin(plain, 2).leases[0].version == "1.1.0"
    assert plane.open(b"third").version == "1.2.0"
    # 1.0.0 is neither stable nor the previous version. It stays for the session that can lease no other.
    plane.sweep_after(1)
    assert plane.residency.find(plane.version.digest) is not None
    plane.ask(b"other", Goodbye(pinned.session, pinned.epoch, 9))
    assert plane.sweep_after(1) == [b"\0"]


def test_a_session_that_can_lease_only_an_unloaded_version_gets_version_gone_at_begin() -> None:
    plane = ResidencyPlane(VersionSettings(old_max=0))
    pinned = plane.open(version_range="<1.1")
    plane.switch(1)
    plane.sweep_after(0)
    reply = plane.ask(b"peer", Begin(pinned.session, pinned.epoch, 1, [5]))
    assert isinstance(reply, Error)
    assert reply.code == "version_gone"


def test_a_rollback_returns_to_the_previous_version_and_keeps_its_leases(plane: ResidencyPlane) -> None:
    welcome = plane.open()
    old = plane.begin(welcome, 1)
    plane.switch(1)
    new = plane.begin(welcome, 2)
    assert plane.switch(0) is plane.version
    assert plane.begin(welcome, 3).leases[0].version == "1.0.0"
    assert (plane.act_on_ones(old, 4)[1], plane.act_on_ones(new, 5)[1]) == ([3.0], [103.0])
    assert plane.version.leases == 2


def test_a_loaded_version_gets_no_episode_before_the_switch_and_can_be_forgotten(plane: ResidencyPlane) -> None:
    loaded = plane.load(3)
    assert plane.begin(plane.open(), 1).leases[0].version == "1.0.0"
    assert plane.sweep_after(10_000) == []
    plane.residency.forget(loaded)
    assert plane.sweep_after(0) == [b"\3"]


def test_each_row_of_a_mixed_version_group_is_answered_for_its_own_observation(plane: ResidencyPlane) -> None:
    group = plane.begin(plane.open(), 1, rows=3)
    plane.act_on_ones(group, 2, 3)
    plane.switch(1)
    plane.act_on_ones(group, 3, 3, episode_start=b"\1\0\1")
    rows = np.repeat(np.array([[1.0], [2.0], [3.0]], np.float32), WIDTH, axis=1)
    plane.deliver(b"peer", act(group, 4, 3), rows.tobytes())
    plane.run()
    assert np.frombuffer(plane.transport.sent[0][2], np.float32).tolist() == [103.0, 6.0, 109.0]


def test_a_canary_at_ten_percent_gets_ten_percent_of_ten_thousand_episodes_and_keeps_them() -> None:
    plane = ResidencyPlane(limits=ServingLimits(rows_max=250, queue_rows_max=250))
    plane.load_arm(1, 0.1)
    welcome = plane.open()
    leased: dict[int, int] = {}
    for first in range(0, 10_000, 250):
        begin = Begin(welcome.session, welcome.epoch, first + 1, list(range(first, first + 250)))
        begun = plane.ask(b"peer", begin)
        assert isinstance(begun, Begun)
        leased |= {first + row: begun.leases[index].digest[0] for row, index in enumerate(begun.row_leases)}
        plane.ask(b"peer", End(welcome.session, welcome.epoch, first + 2, begun.episode))
    assert len(leased) == 10_000
    assert 900 <= sum(leased.values()) <= 1_100
    # The same seed gets the same arm again.
    for seed in (5, 77, 4_242):
        begun = plane.ask(b"peer", Begin(welcome.session, welcome.epoch, 20_000 + seed, [seed]))
        assert isinstance(begun, Begun)
        assert begun.leases[0].digest[0] == leased[seed]


def test_an_arm_that_ends_gets_no_new_episode_and_is_unloaded_with_its_last_one(plane: ResidencyPlane) -> None:
    plane.switch(1)
    plane.switch(2)
    plane.load_arm(3, 1.0)
    welcome = plane.open()
    begun = plane.begin(welcome, 1)
    assert begun.leases[0].version == "1.3.0"
    plane.residency.set_arms([], plane.clock.now_ns)
    assert plane.begin(welcome, 2).leases[0].version == "1.2.0"
    assert b"\3" not in plane.sweep_after(1)
    assert plane.act_on_ones(begun, 3)[1] == [303.0]
    plane.ask(b"peer", End(welcome.session, welcome.epoch, 4, begun.episode))
    assert plane.sweep_after(1) == [b"\3"]


def test_an_arm_keeps_its_share_when_the_one_before_it_becomes_the_stable_version() -> None:
    plane = ResidencyPlane(limits=ServingLimits(rows_max=256, queue_rows_max=256))
    first, second = plane.load(1), plane.load(2)
    plane.residency.set_arms([(first, 0.5), (second, 0.25)], 0)
    plane.residency.switch(first, 1)
    begun = plane.begin(plane.open(), 1, rows=256)
    leased = [begun.leases[index].version for index in begun.row_leases]
    assert set(leased) == {"1.1.0", "1.2.0"}
    assert 40 <= leased.count("1.2.0") <= 90


def test_a_session_does_not_lease_an_arm_outside_its_version_range(plane: ResidencyPlane) -> None:
    plane.load_arm(3, 1.0)
    assert plane.begin(plane.open(version_range="<1.2"), 1).leases[0].version == "1.0.0"


# Evaluation holds


def test_a_held_version_stays_past_every_bound_and_counts_towards_none() -> None:
    plane = ResidencyPlane(VersionSettings(old_max=0, old_mb_max=0, lease_s_max=1))
    begun = plane.begin(plane.open(), 1)
    plane.residency.hold([plane.version], 0)
    plane.switch(1)
    plane.switch(2)
    assert plane.sweep_after(10_000) == [b"\1"]
    assert plane.act_on_ones(begun, 2)[1] == [3.0]
    plane.residency.hold([], plane.clock.now_ns)
    assert plane.sweep_after(0) == [b"\0"]


def test_after_its_hold_a_version_is_bounded_like_any_old_version() -> None:
    plane = ResidencyPlane(VersionSettings(lease_s_max=60))
    plane.load_held(3)
    welcome = plane.open(version_range="==1.3.0")
    begun = plane.begin(welcome, 1)
    assert plane.sweep_after(10_000) == []
    plane.residency.hold([], plane.clock.now_ns)
    assert plane.sweep_after(59) == []
    assert plane.act_on_ones(begun, 2)[1] == [303.0]
    assert codes([plane.ask(b"peer", Begin(welcome.session, welcome.epoch, 3, [5]))]) == ["version_gone"]
    assert plane.sweep_after(2) == [b"\3"]


def test_the_end_of_a_hold_does_not_unload_the_stable_version_or_an_arm(plane: ResidencyPlane) -> None:
    arm = plane.load_arm(1, 0.5)
    plane.residency.hold([plane.version, arm], 0)
    plane.residency.hold([], 1)
    assert plane.sweep_after(100_000) == []
    assert len(plane.residency) == 2


def test_neither_a_switch_nor_an_arm_moves_a_session_off_its_held_version(plane: ResidencyPlane) -> None:
    plane.load_held(3)
    pinned = plane.open(version_range=">=1.3")
    plane.switch(5)
    plane.load_arm(4, 1.0)
    for sequence in range(1, 20):
        assert plane.begin(pinned, sequence).leases[0].version == "1.3.0"


def test_after_the_hold_a_session_moves_to_a_stable_version_that_it_accepts(plane: ResidencyPlane) -> None:
    plane.load_held(3)
    pinned = plane.open(version_range=">=1.3")
    plane.switch(5)
    plane.residency.hold([], 0)
    assert plane.begin(pinned, 1).leases[0].version == "1.5.0"
    assert plane.sweep_after(0) == [b"\3"]


def test_a_waiting_act_survives_a_later_act_that_gets_version_gone() -> None:
    limits = ServingLimits(rows_max=8, queue_rows_max=16, batch_wait_us_max=1_000)
    plane = ResidencyPlane(limits=limits)
    plane.load_held(3)
    begun = plane.begin(plane.open(version_range="==1.3.0"), 1, rows=2)
    other = plane.begin(plane.open(b"other"), 1, peer=b"other")
    assert other.leases[0].version == "1.0.0"
    plane.deliver(b"peer", act(begun, 2, 2), observation(2))
    plane.residency.hold([], 0)
    plane.deliver(b"peer", act(begun, 3, 2, episode_start=b"\1\0"), observation(2))
    answers = plane.replies()
    assert codes(answers) == ["version_gone"]
    plane.clock.now_ns += NS_PER_S
    assert [action_of(answer).sequence for answer in plane.replies()] == [2]
