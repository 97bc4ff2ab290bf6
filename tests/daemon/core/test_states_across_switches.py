"""The states of a recurrent policy across a switch: a row's state belongs to the version that it leases."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest

import pillion
from pillion_artifacts import Store
from pillion_artifacts.store.aliases import move_alias
from pillion_protocol import Begun, End
from pilliond.limits import ServingLimits
from pilliond.settings.schema import VersionSettings
from tests.conftest import StartDaemon
from tests.daemon.support.fakes import CountingEngine, act, codes, observation
from tests.daemon.support.policies.recurrent import publish_summing
from tests.daemon.support.residency_plane import AddingEngine, ResidencyPlane


class SummingEngine(AddingEngine):
    """A recurrent engine: its action and its state grow by 3 + `added` with each act on ones."""

    def __init__(self, rows_max: int, added: float, *, carries: bool) -> None:
        super().__init__(rows_max, added)
        if carries:
            self.memories[0].states = self.states = [(np.zeros(rows_max, np.float32), np.zeros(rows_max, np.float32))]

    def run(self, rows: int) -> None:
        super().run(rows)
        for _, after in self.states:
            after[:rows] = self.outputs["action"][:rows]


class RecurrentPlane(ResidencyPlane):
    """A data plane of recurrent versions. Version 1.n.0 adds 3 + 100 × n in each act; 1.9.0 has no state."""

    def make_engine(self, number: int) -> CountingEngine:
        return SummingEngine(self.limits.rows_max, 100.0 * number, carries=number != 9)

    def actions(self, begun: Begun, sequence: int, rows: int = 1, starts: bytes = b"") -> list[float]:
        """Acts on observations of ones and returns the action of each row."""
        return self.act_on_ones(begun, sequence, rows, episode_start=starts)[1]


@pytest.fixture
def plane() -> RecurrentPlane:
    return RecurrentPlane()


def test_an_episode_keeps_its_state_through_a_switch_and_a_new_one_begins_at_zero(plane: RecurrentPlane) -> None:
    welcome = plane.open()
    old = plane.begin(welcome, 1)
    assert plane.actions(old, 2) == [3.0]
    plane.switch(1)
    new = plane.begin(welcome, 3)
    assert [plane.actions(new, 4), plane.actions(old, 5), plane.actions(new, 6), plane.actions(old, 7)] == [
        [103.0], [6.0], [206.0], [9.0],
    ]  # fmt: skip


def test_a_group_that_switches_begins_at_zero(plane: RecurrentPlane) -> None:
    begun = plane.begin(plane.open(), 1)
    plane.actions(begun, 2)
    plane.switch(1)
    assert plane.actions(begun, 3, starts=b"\1") == [103.0]
    assert plane.actions(begun, 4) == [206.0]


def test_rows_that_switch_begin_at_zero_and_the_others_keep_their_state(plane: RecurrentPlane) -> None:
    begun = plane.begin(plane.open(), 1, rows=4)
    plane.actions(begun, 2, 4)
    plane.switch(1)
    assert plane.actions(begun, 3, 4, b"\0\1\0\1") == [6.0, 103.0, 6.0, 103.0]
    assert plane.actions(begun, 4, 4) == [9.0, 206.0, 9.0, 206.0]
    plane.switch(2)
    assert plane.actions(begun, 5, 4, b"\0\0\1\1") == [12.0, 309.0, 203.0, 203.0]
    assert plane.actions(begun, 6, 4, b"\1\0\0\0") == [203.0, 412.0, 406.0, 406.0]
    assert plane.actions(begun, 7, 4, b"\0\1\0\0") == [406.0, 203.0, 609.0, 609.0]
    assert plane.actions(begun, 8, 4) == [609.0, 406.0, 812.0, 812.0]


def test_a_row_that_returns_to_a_version_does_not_find_its_old_state(plane: RecurrentPlane) -> None:
    begun = plane.begin(plane.open(), 1, rows=2)
    plane.actions(begun, 2, 2)
    plane.switch(1)
    plane.actions(begun, 3, 2, b"\0\1")
    plane.switch(0)
    assert plane.actions(begun, 4, 2, b"\0\1") == [9.0, 3.0]


def test_a_row_that_switched_in_a_failed_act_begins_at_zero_with_the_next_act(plane: RecurrentPlane) -> None:
    begun = plane.begin(plane.open(), 1, rows=2)
    plane.actions(begun, 2, 2)
    second = plane.switch(1)
    assert isinstance(second.engine, SummingEngine)
    second.engine.fails = True
    refused = plane.ask(b"peer", act(begun, 3, 2, episode_start=b"\0\1"), observation(2))
    assert codes([refused]) == ["internal"]
    assert [fields["version"] for _, fields in plane.events] == ["counter@1.0.0, counter@1.1.0"]
    second.engine.fails = False
    assert plane.actions(begun, 4, 2) == [6.0, 103.0]


def test_rows_switch_to_a_version_without_state_and_back(plane: RecurrentPlane) -> None:
    begun = plane.begin(plane.open(), 1, rows=2)
    plane.actions(begun, 2, 2)
    plane.switch(9)
    assert plane.actions(begun, 3, 2, b"\0\1") == [6.0, 903.0]
    assert plane.actions(begun, 4, 2) == [9.0, 903.0]
    plane.switch(0)
    assert plane.actions(begun, 5, 2, b"\0\1") == [12.0, 3.0]


def test_rows_whose_version_is_gone_begin_an_episode_and_the_others_keep_their_state() -> None:
    plane = RecurrentPlane(VersionSettings(old_max=1))
    begun = plane.begin(plane.open(), 1, rows=2)
    plane.actions(begun, 2, 2)
    plane.switch(1)
    plane.actions(begun, 3, 2, b"\0\1")
    plane.switch(2)
    assert plane.sweep_after(1) == [b"\0"]
    assert codes([plane.ask(b"peer", act(begun, 4, 2), observation(2))]) == ["version_gone"]
    assert plane.actions(begun, 5, 2, b"\1\0") == [203.0, 206.0]
    assert plane.actions(begun, 6, 2) == [406.0, 309.0]


def test_the_memory_of_states_is_counted_through_every_switch_and_freed() -> None:
    plane = RecurrentPlane(VersionSettings(old_max=1))
    welcome = plane.open()
    begun = plane.begin(welcome, 1, rows=4)
    state_bytes = [plane.policy.state_bytes]
    plane.actions(begun, 2, 4)
    plane.switch(1)
    plane.actions(begun, 3, 4, b"\0\1\0\0")
    state_bytes.append(plane.policy.state_bytes)
    plane.switch(2)
    plane.sweep_after(1)
    state_bytes.append(plane.policy.state_bytes)
    plane.actions(begun, 4, 4, b"\1\1\1\1")
    state_bytes.append(plane.policy.state_bytes)
    plane.ask(b"peer", End(welcome.session, welcome.epoch, 5, begun.episode))
    assert [*state_bytes, plane.policy.state_bytes] == [16, 32, 16, 16, 0]


def test_an_unloaded_version_frees_its_memory_even_if_rows_had_its_state() -> None:
    plane = RecurrentPlane(VersionSettings(old_max=0))
    engine = weakref.ref(plane.version.engine)
    begun = plane.begin(plane.open(), 1, rows=2)
    plane.actions(begun, 2, 2)
    plane.switch(1)
    plane.actions(begun, 3, 2, b"\0\1")
    assert plane.sweep_after(0) == [b"\0"]
    plane.version = None  # type: ignore[assignment]
    gc.collect()
    assert engine() is None


def test_a_mixed_version_group_keeps_its_states_beside_a_group_with_one_version() -> None:
    plane = RecurrentPlane(limits=ServingLimits(rows_max=8, queue_rows_max=16))
    welcome = plane.open()
    mixed, plain = plane.begin(welcome, 1, rows=2), plane.begin(welcome, 2)
    plane.actions(mixed, 3, 2)
    plane.actions(plain, 4)
    plane.switch(1)
    for step in range(3):
        starts = b"\0\1" if step == 0 else b""
        assert plane.actions(mixed, 5 + 2 * step, 2, starts) == [6.0 + 3 * step, 103.0 * (step + 1)]
        assert plane.actions(plain, 6 + 2 * step) == [6.0 + 3 * step]


def test_a_daemon_stages_and_certifies_a_recurrent_policy_and_no_state_crosses_the_switch(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    publish_summing(tmp_path / "store", "1.0.0", 0.0)
    publish_summing(tmp_path / "store", "1.1.0", 100.0)
    move_alias(Store(tmp_path / "store"), "summing", "stable", "1.0.0", expected="", by="a test")
    daemon = start_daemon(policy="summing@stable", store=tmp_path / "store")
    ones = np.ones((3, 1), np.float32)
    with pillion.connect(daemon.address) as session:
        group = session.begin_many(3)
        assert group.act(ones)[:, 0].tolist() == [1.0, 1.0, 1.0]
        done = daemon.operation(daemon.ask("POST", "/v1/policies/summing/switch", {"version": "1.1.0"}))
        assert (done["outcome"], done["certificate"]["batch"]) == ("done", "exact")
        assert group.act(ones)[:, 0].tolist() == [2.0, 2.0, 2.0]
        assert group.act(ones, episode_start=[False, True, False])[:, 0].tolist() == [3.0, 101.0, 3.0]
        digests = group.last.row_digests
        assert digests[0] == digests[2] != digests[1]
        assert group.act(ones)[:, 0].tolist() == [4.0, 202.0, 4.0]
        assert group.act(ones, episode_start=[True, False, True])[:, 0].tolist() == [101.0, 303.0, 101.0]
        assert group.act(ones)[:, 0].tolist() == [202.0, 404.0, 202.0]
        assert group.last.row_digests == [digests[1]] * 3
