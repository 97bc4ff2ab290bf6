"""Several versions in one serving process: what an episode leases, what a batch holds, and when a version goes. No sockets."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from pillion_artifacts.card.model_card import Distribution
from pillion_protocol import Action, Begin, Begun, End, Error, Goodbye, Spec, TensorSpec, decode
from pilliond.core.residency import Residency
from pilliond.core.routing import Router
from pilliond.core.scheduler import Scheduler
from pilliond.core.sessions import Sessions
from pilliond.limits import ServingLimits
from pilliond.serving.loop import ServingLoop
from pilliond.settings.schema import VersionSettings
from pilliond.versions.loaded_version import Identity, Version
from tests.daemon.support.fakes import DIGEST, SPEC, WIDTH, Bench, CountingEngine, act, action_of, codes, observation

SECOND = 1_000_000_000
GAUSSIAN = Distribution("diagonal_gaussian", log_std="log_std")


class AddingEngine(CountingEngine):
    """The action is the sum of the observation and of a number that tells the versions apart."""

    def __init__(self, rows_max: int, added: float) -> None:
        super().__init__(rows_max)
        self.added = added

    def run(self, rows: int) -> None:
        super().run(rows)
        self.outputs["action"][:rows] += np.float32(self.added)


class Switchboard(Bench):
    """A serving loop with a residency; `version(n)` is version 1.n.0, whose action is 100 × n more."""

    def __init__(self, bounds: VersionSettings | None = None, limits: ServingLimits | None = None) -> None:
        super().__init__(limits)
        self.first = self.make(0)
        self.router = Router(self.first)
        self.scheduler = Scheduler(self.limits.rows_max, self.limits.batch_wait_us_max * 1_000)
        self.sessions = Sessions(7, self.router, self.limits, self.page, self.scheduler)
        self.loop = ServingLoop(
            self.poller,  # type: ignore[arg-type]
            [self.transport, self.other_transport],  # type: ignore[list-item]
            self.sessions,
            self.scheduler,
            self.page,
            self.clock,
            lambda name, fields: self.events.append(name),
        )
        self.residency = Residency(self.router, self.sessions, bounds or VersionSettings())

    def make(self, number: int, spec: Spec = SPEC) -> Version:
        """Version 1.`number`.0, not loaded yet."""
        engine = AddingEngine(self.limits.rows_max, 100.0 * number)
        digest = bytes([number]) + DIGEST[1:]
        return Version(Identity("counter", f"1.{number}.0", digest), spec, GAUSSIAN, engine, metrics_index=number + 1)

    def switch(self, number: int, spec: Spec = SPEC) -> Version:
        """Loads a version where it is not, and switches to it."""
        version = self.residency.find(bytes([number]) + DIGEST[1:]) or self.make(number, spec)
        self.residency.add(version)
        self.residency.switch(version, self.clock.now_ns)
        return version

    def acted(self, begun: Begun, sequence: int, rows: int = 1, **fields: object) -> tuple[Action, list[float]]:
        """The action that comes of ones, and its numbers."""
        self.put(b"peer", act(begun, sequence, rows, **fields), observation(rows))
        self.wake()
        (sent,) = self.transport.sent
        self.transport.sent.clear()
        return action_of(decode(sent[1])), np.frombuffer(sent[2], np.float32).tolist()

    def pass_time(self, seconds: float) -> list[bytes]:
        """Lets time pass; gives the first byte of the digests that went."""
        self.clock.now_ns += int(seconds * SECOND)
        return [digest[:1] for digest, _ in self.residency.sweep(self.clock.now_ns)]


@pytest.fixture
def board() -> Switchboard:
    return Switchboard()


def test_an_episode_is_answered_by_the_version_it_began_with_and_the_next_one_by_the_new(board: Switchboard) -> None:
    welcome = board.open()
    old = board.begin(welcome, 1)
    second = board.switch(1)
    new = board.begin(welcome, 4)
    assert (old.leases[0].version, new.leases[0].version) == ("1.0.0", "1.1.0")
    for sequence in (5, 7, 9):
        action, numbers = board.acted(old, sequence)
        assert (action.digest, numbers) == (board.first.digest, [3.0])
        action, numbers = board.acted(new, sequence + 1)
        assert (action.digest, numbers) == (second.digest, [103.0])


def test_a_batch_never_mixes_the_versions_of_two_groups() -> None:
    board = Switchboard(limits=ServingLimits(rows_max=8, queue_rows_max=16, batch_wait_us_max=1_000))
    welcome = board.open()
    old = board.begin(welcome, 1)
    second = board.switch(1)
    new = board.begin(welcome, 2)
    board.put(b"peer", act(old, 3), observation())
    board.put(b"peer", act(new, 4), observation())
    answers = [action_of(message) for message in board.pump()]
    assert {(action.episode, action.digest, action.batch_rows) for action in answers} == {
        (old.episode, board.first.digest, 1),
        (new.episode, second.digest, 1),
    }


def test_rows_that_start_anew_go_over_and_the_others_keep_their_version(board: Switchboard) -> None:
    group = board.begin(board.open(), 1, rows=4)
    board.acted(group, 2, 4)
    second = board.switch(1)
    action, numbers = board.acted(group, 3, 4, episode_start=b"\0\1\0\1")
    assert numbers == [3.0, 103.0, 3.0, 103.0]
    assert [lease.digest for lease in action.leases] == [board.first.digest, second.digest]
    assert action.row_leases == [0, 1, 0, 1]
    action, numbers = board.acted(group, 4, 4)
    assert (numbers, action.row_leases) == ([3.0, 103.0, 3.0, 103.0], [0, 1, 0, 1])


def test_a_group_is_whole_again_when_its_last_row_has_gone_over_and_the_first_action_names_the_lease(
    board: Switchboard,
) -> None:
    group = board.begin(board.open(), 1, rows=2)
    board.acted(group, 2, 2)
    second = board.switch(1)
    board.acted(group, 3, 2, episode_start=b"\1\0")
    action, numbers = board.acted(group, 4, 2, episode_start=b"\0\1")
    assert (numbers, action.digest, action.row_leases) == ([103.0] * 2, second.digest, [])
    assert [lease.version for lease in action.leases] == ["1.1.0"]
    action, numbers = board.acted(group, 5, 2)
    assert (numbers, action.digest, action.leases) == ([103.0] * 2, second.digest, [])
    assert (board.first.leases, second.leases) == (0, 1)


def test_a_divided_act_draws_what_its_rows_would_draw_alone(board: Switchboard) -> None:
    group = board.begin(board.open(), 1, rows=2)
    board.acted(group, 2, 2)
    board.switch(1)
    _, both = board.acted(group, 3, 2, episode_start=b"\0\1", seeds=[77], deterministic=False)
    alone = Switchboard()
    begun = alone.begin(alone.open(), 1, rows=2)
    alone.acted(begun, 2, 2)
    _, one = alone.acted(begun, 3, 2, episode_start=b"\0\1", seeds=[77], deterministic=False)
    assert both[0] == one[0]
    assert both[1] == pytest.approx(one[1] + 100.0, abs=1e-4)


def test_a_repeated_act_gets_the_same_reply_across_a_change_of_leases(board: Switchboard) -> None:
    group = board.begin(board.open(), 1, rows=2)
    board.acted(group, 2, 2)
    board.switch(1)
    first = board.acted(group, 3, 2, episode_start=b"\0\1")
    again = board.acted(group, 3, 2, episode_start=b"\0\1")
    assert first == again


def test_an_old_version_goes_when_nobody_leases_it_but_the_last_stable_one_stays(board: Switchboard) -> None:
    welcome = board.open()
    old = board.begin(welcome, 1)
    board.switch(1)
    board.switch(2)
    assert board.pass_time(1) == []
    board.ask(b"peer", End(welcome.session, welcome.epoch, 2, old.episode))
    assert board.pass_time(1) == [b"\0"]
    assert board.pass_time(1) == []
    assert {version.identity.version for version in board.residency.versions()} == {"1.1.0", "1.2.0"}


def test_a_version_that_went_gives_its_memory_back_though_a_group_held_it() -> None:
    board = Switchboard(VersionSettings(old_max=0))
    engine = weakref.ref(board.first.engine)
    begun = board.begin(board.open(), 1)
    board.acted(begun, 2)
    board.switch(1)
    assert board.pass_time(0) == [b"\0"]
    board.engine = board.version = board.first = None  # type: ignore[assignment]
    gc.collect()
    assert engine() is None


@pytest.mark.parametrize(
    ("bounds", "seconds"),
    [(VersionSettings(old_max=0), 0), (VersionSettings(old_mb_max=0), 0), (VersionSettings(lease_s_max=60), 61)],
)
def test_past_a_bound_the_episode_is_told_that_its_version_is_gone_and_never_switched(
    bounds: VersionSettings, seconds: float
) -> None:
    board = Switchboard(bounds)
    welcome = board.open()
    begun = board.begin(welcome, 1, rows=2)
    board.acted(begun, 2, 2)
    board.switch(1)
    board.pass_time(seconds)
    for sequence, fields in ((3, {}), (4, {"episode_start": b"\1\0"})):
        reply = board.ask(b"peer", act(begun, sequence, 2, **fields), observation(2))
        assert codes([reply]) == ["version_gone"]
    # What was refused changed nothing; a group whose rows all begin anew leases what is there.
    action, numbers = board.acted(begun, 5, 2, episode_start=b"\1\1")
    assert (action.digest[0], numbers) == (1, [103.0, 103.0])


def test_before_the_bound_the_lease_holds() -> None:
    board = Switchboard(VersionSettings(lease_s_max=60))
    begun = board.begin(board.open(), 1)
    board.switch(1)
    assert board.pass_time(59) == []
    assert board.acted(begun, 2)[1] == [3.0]


def test_an_act_that_waits_when_its_version_must_go_is_run_on_it() -> None:
    limits = ServingLimits(rows_max=8, queue_rows_max=16, batch_wait_us_max=1_000_000)
    board = Switchboard(VersionSettings(old_max=0), limits)
    welcome = board.open()
    waits, other = board.begin(welcome, 1), board.begin(welcome, 2)
    board.put(b"peer", act(waits, 3), observation())
    assert board.pump() == []
    board.switch(1)
    assert board.pass_time(0) == []
    assert codes([board.ask(b"peer", act(other, 4), observation())]) == ["version_gone"]
    board.clock.now_ns += SECOND
    (answer,) = board.pump()
    assert action_of(answer).digest == board.first.digest
    assert board.pass_time(0) == [b"\0"]


def test_a_session_whose_spec_or_range_differs_stays_on_the_old_version_and_new_hellos_see_the_new(
    board: Switchboard,
) -> None:
    plain, pinned = board.open(b"peer"), board.open(b"other", version_range="<1.1")
    wider = Spec([TensorSpec("observation", "float32", [WIDTH])], [*SPEC.outputs, TensorSpec("log_std", "float32", [])])
    board.switch(1)
    begun = board.begin(plain, 1)
    assert begun.leases[0].version == "1.1.0"
    assert board.begin(pinned, 1, peer=b"other").leases[0].version == "1.0.0"
    board.switch(2, wider)
    assert board.begin(plain, 2).leases[0].version == "1.1.0"
    assert board.open(b"third").version == "1.2.0"
    # 1.0.0 is neither stable nor the one before; a session that can lease nothing else holds it.
    board.pass_time(1)
    assert board.residency.find(board.first.digest) is not None
    board.ask(b"other", Goodbye(pinned.session, pinned.epoch, 9))
    assert board.pass_time(1) == [b"\0"]


def test_a_session_that_can_lease_only_what_is_gone_is_told_so_at_begin() -> None:
    board = Switchboard(VersionSettings(old_max=0))
    pinned = board.open(version_range="<1.1")
    board.switch(1)
    board.pass_time(0)
    reply = board.ask(b"peer", Begin(pinned.session, pinned.epoch, 1, [5]))
    assert isinstance(reply, Error)
    assert reply.code == "version_gone"


def test_a_rollback_finds_the_version_before_and_its_old_leases(board: Switchboard) -> None:
    welcome = board.open()
    old = board.begin(welcome, 1)
    board.switch(1)
    new = board.begin(welcome, 2)
    assert board.switch(0) is board.first
    assert board.begin(welcome, 3).leases[0].version == "1.0.0"
    assert (board.acted(old, 4)[1], board.acted(new, 5)[1]) == ([3.0], [103.0])
    assert board.first.leases == 2


def test_a_loaded_version_serves_nobody_before_the_switch_and_may_be_forgotten(board: Switchboard) -> None:
    waiting = board.make(3)
    board.residency.add(waiting)
    assert board.begin(board.open(), 1).leases[0].version == "1.0.0"
    assert board.pass_time(10_000) == []
    board.residency.forget(waiting)
    assert board.pass_time(0) == [b"\3"]


def test_each_row_of_a_divided_act_is_answered_for_its_own_observation(board: Switchboard) -> None:
    group = board.begin(board.open(), 1, rows=3)
    board.acted(group, 2, 3)
    board.switch(1)
    board.acted(group, 3, 3, episode_start=b"\1\0\1")
    rows = np.repeat(np.array([[1.0], [2.0], [3.0]], np.float32), WIDTH, axis=1)
    board.put(b"peer", act(group, 4, 3), rows.tobytes())
    board.wake()
    assert np.frombuffer(board.transport.sent[0][2], np.float32).tolist() == [103.0, 6.0, 109.0]


def test_a_canary_at_ten_percent_gets_ten_percent_of_ten_thousand_episodes_and_keeps_them() -> None:
    board = Switchboard(limits=ServingLimits(rows_max=250, queue_rows_max=250))
    canary = board.make(1)
    board.residency.add(canary)
    board.residency.set_arms([(canary, 0.1)], 0)
    welcome = board.open()
    leased: dict[int, int] = {}
    for first in range(0, 10_000, 250):
        begin = Begin(welcome.session, welcome.epoch, first + 1, list(range(first, first + 250)))
        begun = board.ask(b"peer", begin)
        assert isinstance(begun, Begun)
        leased |= {first + row: begun.leases[index].digest[0] for row, index in enumerate(begun.row_leases)}
        board.ask(b"peer", End(welcome.session, welcome.epoch, first + 2, begun.episode))
    assert len(leased) == 10_000
    assert 900 <= sum(leased.values()) <= 1_100
    # Whoever begins with the same seed again falls to the same arm.
    for seed in (5, 77, 4_242):
        begun = board.ask(b"peer", Begin(welcome.session, welcome.epoch, 20_000 + seed, [seed]))
        assert isinstance(begun, Begun)
        assert begun.leases[0].digest[0] == leased[seed]


def test_an_arm_that_ends_is_leased_by_nobody_new_and_goes_when_its_episodes_end(board: Switchboard) -> None:
    board.switch(1)
    board.switch(2)
    arm = board.make(3)
    board.residency.add(arm)
    board.residency.set_arms([(arm, 1.0)], board.clock.now_ns)
    welcome = board.open()
    begun = board.begin(welcome, 1)
    assert begun.leases[0].version == "1.3.0"
    board.residency.set_arms([], board.clock.now_ns)
    assert board.begin(welcome, 2).leases[0].version == "1.2.0"
    assert b"\3" not in board.pass_time(1)
    assert board.acted(begun, 3)[1] == [303.0]
    board.ask(b"peer", End(welcome.session, welcome.epoch, 4, begun.episode))
    assert board.pass_time(1) == [b"\3"]


def test_an_arm_keeps_its_share_when_the_one_before_it_becomes_the_stable_version() -> None:
    board = Switchboard(limits=ServingLimits(rows_max=256, queue_rows_max=256))
    first, second = board.make(1), board.make(2)
    for arm in (first, second):
        board.residency.add(arm)
    board.residency.set_arms([(first, 0.5), (second, 0.25)], 0)
    board.residency.switch(first, 1)
    begun = board.begin(board.open(), 1, rows=256)
    shared = [begun.leases[index].version for index in begun.row_leases]
    assert set(shared) == {"1.1.0", "1.2.0"}
    assert 40 <= shared.count("1.2.0") <= 90


def test_an_arm_that_a_session_cannot_go_over_to_is_not_leased_by_it(board: Switchboard) -> None:
    arm = board.make(3)
    board.residency.add(arm)
    board.residency.set_arms([(arm, 1.0)], 0)
    assert board.begin(board.open(version_range="<1.2"), 1).leases[0].version == "1.0.0"


# Versions that are held for evaluations


def test_a_held_version_stays_past_every_bound_and_does_not_count(board: Switchboard) -> None:
    board = Switchboard(VersionSettings(old_max=0, old_mb_max=0, lease_s_max=1))
    begun = board.begin(board.open(), 1)
    board.residency.hold([board.first], 0)
    board.switch(1)
    board.switch(2)
    assert board.pass_time(10_000) == [b"\1"]
    assert board.acted(begun, 2)[1] == [3.0]
    board.residency.hold([], board.clock.now_ns)
    assert board.pass_time(0) == [b"\0"]


def test_a_version_whose_hold_has_ended_is_bounded_from_then_on_as_any_old_one() -> None:
    board = Switchboard(VersionSettings(lease_s_max=60))
    held = board.make(3)
    board.residency.add(held)
    board.residency.hold([held], 0)
    welcome = board.open(version_range="==1.3.0")
    begun = board.begin(welcome, 1)
    assert board.pass_time(10_000) == []
    board.residency.hold([], board.clock.now_ns)
    assert board.pass_time(59) == []
    assert board.acted(begun, 2)[1] == [303.0]
    assert codes([board.ask(b"peer", Begin(welcome.session, welcome.epoch, 3, [5]))]) == ["version_gone"]
    assert board.pass_time(2) == [b"\3"]


def test_the_end_of_a_hold_leaves_the_stable_version_and_arms_alone(board: Switchboard) -> None:
    arm = board.make(1)
    board.residency.add(arm)
    board.residency.set_arms([(arm, 0.5)], 0)
    board.residency.hold([board.first, arm], 0)
    board.residency.hold([], 1)
    assert board.pass_time(100_000) == []
    assert len(board.residency) == 2


def test_a_session_of_a_campaign_is_moved_neither_by_a_switch_nor_by_an_arm(board: Switchboard) -> None:
    held = board.make(3)
    board.residency.add(held)
    board.residency.hold([held], 0)
    asking = board.open(version_range=">=1.3")
    board.switch(5)
    arm = board.make(4)
    board.residency.add(arm)
    board.residency.set_arms([(arm, 1.0)], 0)
    for sequence in range(1, 20):
        assert board.begin(asking, sequence).leases[0].version == "1.3.0"


def test_a_session_of_a_campaign_that_ended_goes_over_where_the_stable_version_suits_it(board: Switchboard) -> None:
    held = board.make(3)
    board.residency.add(held)
    board.residency.hold([held], 0)
    asking = board.open(version_range=">=1.3")
    board.switch(5)
    board.residency.hold([], 0)
    assert board.begin(asking, 1).leases[0].version == "1.5.0"
    assert board.pass_time(0) == [b"\3"]


def test_a_waiting_act_outlives_one_that_may_not_begin_its_episode(board: Switchboard) -> None:
    limits = ServingLimits(rows_max=8, queue_rows_max=16, batch_wait_us_max=1_000)
    board = Switchboard(limits=limits)
    held = board.make(3)
    board.residency.add(held)
    board.residency.hold([held], 0)
    begun = board.begin(board.open(version_range="==1.3.0"), 1, rows=2)
    other = board.begin(board.open(b"other"), 1, peer=b"other")
    assert other.leases[0].version == "1.0.0"
    board.put(b"peer", act(begun, 2, 2), observation(2))
    board.residency.hold([], 0)
    board.put(b"peer", act(begun, 3, 2, episode_start=b"\1\0"), observation(2))
    answers = board.pump()
    assert codes(answers) == ["version_gone"]
    board.clock.now_ns += SECOND
    assert [action_of(answer).sequence for answer in board.pump()] == [2]
