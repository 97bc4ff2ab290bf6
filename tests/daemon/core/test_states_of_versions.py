"""What a recurrent policy carries over a switch: a row's state belongs to the version that it leases, and goes to no other."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import pillion
from pillion_artifacts import Store
from pillion_artifacts.store.aliases import move_alias
from pillion_protocol import End, Spec
from pilliond.limits import ServingLimits
from pilliond.settings.schema import VersionSettings
from pilliond.versions.loaded_version import Identity, Version
from tests.conftest import StartDaemon
from tests.daemon.core.test_residency import GAUSSIAN, AddingEngine, Switchboard
from tests.daemon.support.fakes import DIGEST, SPEC, act, codes, observation
from tests.harness import publish

CARD = """
schema: 2
name: summing
version: {version}
description: Adds up what its episode has observed, and a step for each act.
licence: Apache-2.0
observation:
- {{name: observation, dtype: float32, shape: [1]}}
outputs:
- {{name: action, dtype: float32, shape: [1]}}
state:
- {{name: sum, output: sum_next, dtype: float32, shape: [1]}}
"""


class SummingEngine(AddingEngine):
    """After so many acts of ones its action is as often 3 + `added`, which its state holds."""

    def __init__(self, rows_max: int, added: float, *, carries: bool) -> None:
        super().__init__(rows_max, added)
        if carries:
            self.states = [(np.zeros(rows_max, np.float32), np.zeros(rows_max, np.float32))]

    def run(self, rows: int) -> None:
        super().run(rows)
        for _, after in self.states:
            after[:rows] = self.outputs["action"][:rows]


class SummingBoard(Switchboard):
    """Version 1.n.0 adds 3 + 100 × n in each act; 1.9.0 carries nothing."""

    def make(self, number: int, spec: Spec = SPEC) -> Version:
        engine = SummingEngine(self.limits.rows_max, 100.0 * number, carries=number != 9)
        identity = Identity("counter", f"1.{number}.0", bytes([number]) + DIGEST[1:])
        return Version(identity, spec, GAUSSIAN, engine, metrics_index=number + 1)

    def numbers(self, begun: Any, sequence: int, rows: int = 1, starts: bytes = b"") -> list[float]:
        return self.acted(begun, sequence, rows, episode_start=starts)[1]


@pytest.fixture
def board() -> SummingBoard:
    return SummingBoard()


def test_an_episode_goes_on_with_its_state_after_a_switch_and_a_new_one_begins_at_zero(board: SummingBoard) -> None:
    welcome = board.open()
    old = board.begin(welcome, 1)
    assert board.numbers(old, 2) == [3.0]
    board.switch(1)
    new = board.begin(welcome, 3)
    assert [board.numbers(new, 4), board.numbers(old, 5), board.numbers(new, 6), board.numbers(old, 7)] == [
        [103.0], [6.0], [206.0], [9.0],
    ]  # fmt: skip


def test_a_group_that_goes_over_begins_at_zero(board: SummingBoard) -> None:
    begun = board.begin(board.open(), 1)
    board.numbers(begun, 2)
    board.switch(1)
    assert board.numbers(begun, 3, starts=b"\1") == [103.0]
    assert board.numbers(begun, 4) == [206.0]


def test_rows_that_go_over_begin_at_zero_and_the_others_keep_the_state_of_their_version(board: SummingBoard) -> None:
    begun = board.begin(board.open(), 1, rows=4)
    board.numbers(begun, 2, 4)
    board.switch(1)
    assert board.numbers(begun, 3, 4, b"\0\1\0\1") == [6.0, 103.0, 6.0, 103.0]
    assert board.numbers(begun, 4, 4) == [9.0, 206.0, 9.0, 206.0]
    board.switch(2)
    assert board.numbers(begun, 5, 4, b"\0\0\1\1") == [12.0, 309.0, 203.0, 203.0]
    assert board.numbers(begun, 6, 4, b"\1\0\0\0") == [203.0, 412.0, 406.0, 406.0]
    assert board.numbers(begun, 7, 4, b"\0\1\0\0") == [406.0, 203.0, 609.0, 609.0]
    assert board.numbers(begun, 8, 4) == [609.0, 406.0, 812.0, 812.0]


def test_a_row_that_comes_back_to_a_version_does_not_find_what_it_left_there(board: SummingBoard) -> None:
    begun = board.begin(board.open(), 1, rows=2)
    board.numbers(begun, 2, 2)
    board.switch(1)
    board.numbers(begun, 3, 2, b"\0\1")
    board.switch(0)
    assert board.numbers(begun, 4, 2, b"\0\1") == [9.0, 3.0]


def test_a_start_that_went_over_but_was_not_run_begins_at_zero_with_the_next_act(board: SummingBoard) -> None:
    begun = board.begin(board.open(), 1, rows=2)
    board.numbers(begun, 2, 2)
    second = board.switch(1)
    assert isinstance(second.engine, SummingEngine)
    second.engine.fails = True
    refused = board.ask(b"peer", act(begun, 3, 2, episode_start=b"\0\1"), observation(2))
    assert codes([refused]) == ["internal"]
    second.engine.fails = False
    assert board.numbers(begun, 4, 2) == [6.0, 103.0]


def test_a_version_without_state_takes_rows_of_one_with_it_and_gives_them_back(board: SummingBoard) -> None:
    begun = board.begin(board.open(), 1, rows=2)
    board.numbers(begun, 2, 2)
    board.switch(9)
    assert board.numbers(begun, 3, 2, b"\0\1") == [6.0, 903.0]
    assert board.numbers(begun, 4, 2) == [9.0, 903.0]
    board.switch(0)
    assert board.numbers(begun, 5, 2, b"\0\1") == [12.0, 3.0]


def test_rows_whose_version_is_gone_begin_anew_and_the_others_keep_their_state() -> None:
    board = SummingBoard(VersionSettings(old_max=1))
    begun = board.begin(board.open(), 1, rows=2)
    board.numbers(begun, 2, 2)
    board.switch(1)
    board.numbers(begun, 3, 2, b"\0\1")
    board.switch(2)
    assert board.pass_time(1) == [b"\0"]
    assert codes([board.ask(b"peer", act(begun, 4, 2), observation(2))]) == ["version_gone"]
    assert board.numbers(begun, 5, 2, b"\1\0") == [203.0, 206.0]
    assert board.numbers(begun, 6, 2) == [406.0, 309.0]


def test_the_memory_of_states_is_counted_through_every_change_and_given_back() -> None:
    board = SummingBoard(VersionSettings(old_max=1))
    welcome = board.open()
    begun = board.begin(welcome, 1, rows=4)
    counted = [board.sessions._state_bytes]
    board.numbers(begun, 2, 4)
    board.switch(1)
    board.numbers(begun, 3, 4, b"\0\1\0\0")
    counted.append(board.sessions._state_bytes)
    board.switch(2)
    board.pass_time(1)
    counted.append(board.sessions._state_bytes)
    board.numbers(begun, 4, 4, b"\1\1\1\1")
    counted.append(board.sessions._state_bytes)
    board.ask(b"peer", End(welcome.session, welcome.epoch, 5, begun.episode))
    assert [*counted, board.sessions._state_bytes] == [16, 32, 16, 16, 0]


def test_a_version_that_went_gives_its_memory_back_though_rows_carried_its_state() -> None:
    board = SummingBoard(VersionSettings(old_max=0))
    engine = weakref.ref(board.first.engine)
    begun = board.begin(board.open(), 1, rows=2)
    board.numbers(begun, 2, 2)
    board.switch(1)
    board.numbers(begun, 3, 2, b"\0\1")
    assert board.pass_time(0) == [b"\0"]
    board.engine = board.version = board.first = None  # type: ignore[assignment]
    gc.collect()
    assert engine() is None


def test_groups_of_a_version_share_its_batches_beside_one_whose_rows_differ() -> None:
    board = SummingBoard(limits=ServingLimits(rows_max=8, queue_rows_max=16))
    welcome = board.open()
    mixed, plain = board.begin(welcome, 1, rows=2), board.begin(welcome, 2)
    board.numbers(mixed, 3, 2)
    board.numbers(plain, 4)
    board.switch(1)
    for turn in range(3):
        starts = b"\0\1" if turn == 0 else b""
        assert board.numbers(mixed, 5 + 2 * turn, 2, starts) == [6.0 + 3 * turn, 103.0 * (turn + 1)]
        assert board.numbers(plain, 6 + 2 * turn) == [6.0 + 3 * turn]


def publish_summing(store: Path, version: str, step: float) -> None:
    """Publishes `summing`, which adds the observation and `step` to its state, and acts by it."""
    names = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 1]) for name in ("observation", "sum")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 1]) for name in ("action", "sum_next")]
    nodes = [
        helper.make_node("Add", ["observation", "step"], ["more"]),
        helper.make_node("Add", ["sum", "more"], ["sum_next"]),
        helper.make_node("Identity", ["sum_next"], ["action"]),
    ]
    constants = [numpy_helper.from_array(np.array(step, np.float32), "step")]
    graph = helper.make_graph(nodes, "summing", names, ends, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    publish(store, "summing", version, model.SerializeToString(), CARD.format(version=version))


def test_a_real_daemon_stages_and_certifies_a_recurrent_policy_and_no_state_crosses_the_switch(
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
