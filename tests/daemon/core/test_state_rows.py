"""Recurrent states in tables of workers: whatever happens to acts and groups, each row finds its own, and none is lost."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pillion_artifacts.card.model_card import Distribution, StateCard
from pillion_protocol import Begun, End, Message, Spec, TensorSpec, decode
from pillion_protocol.slots import write_generation
from pillion_worker.tensors import State
from pilliond.engine.interface import Engine
from pilliond.engine.state_rows import StateRows
from pilliond.engine.worker import WorkerEngine
from pilliond.transport.slots import SlotRegion
from pilliond.versions.loaded_version import Identity, Version
from tests.daemon.support.fakes import DIGEST, WIDTH, Clock, act, codes, observation
from tests.daemon.support.residency_plane import ResidencyPlane
from tests.worker.support.policies import Policy
from tests.worker.support.processes import Host

ROWS_MAX: Final = 8
ROWS: Final = 3
STEPS: Final = [1.0, 100.0]
"""What each version adds to the sum of its observations in every act."""
SPEC: Final = Spec([TensorSpec("observation", "float32", [WIDTH])], [TensorSpec("action", "float32", [])])


def summing(step: float) -> Policy:
    """Its action is the sum of its episode so far, which is its state: of the observations, and a step for each act."""
    nodes = [
        helper.make_node("ReduceSum", ["observation", "axes"], ["now"], keepdims=0),
        helper.make_node("Add", ["now", "step"], ["more"]),
        helper.make_node("Add", ["more", "sum"], ["action"]),
        helper.make_node("Identity", ["action"], ["sum_next"]),
    ]
    graph = helper.make_graph(
        nodes,
        "summing",
        [
            helper.make_tensor_value_info("observation", TensorProto.FLOAT, ["rows", WIDTH]),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["rows"]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows"]) for name in ("action", "sum_next")],
        [
            numpy_helper.from_array(np.array(step, np.float32), "step"),
            numpy_helper.from_array(np.array([1], np.int64), "axes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return Policy(model.SerializeToString(), SPEC, [], [StateCard("sum", "sum_next", "float32", [])])


class TickingClock(Clock):
    """Time passes with each look, so that the loop stops polling for its workers."""

    def __call__(self) -> int:
        self.now_ns += 10_000
        return self.now_ns


class TablePlane(ResidencyPlane):
    """A data plane whose versions run in real workers. An answer comes when the test lets it."""

    make_clock = TickingClock

    def __init__(self, hosts: list[Host]) -> None:
        self.hosts = hosts
        super().__init__()
        for host in hosts:
            engine: Any = host.engine
            engine.on_completed = self._complete
            engine.on_lost = self._lose

    def _complete(self, engine: WorkerEngine, memory: Any, outcome: int, message: str, *_: int) -> None:
        self.loop.complete(memory, message or None)

    def _lose(self, engine: WorkerEngine, reason: str) -> None:
        self.loop.lose([batch.memory for batch in engine.in_flight])

    def make_version(self, number: int, spec: Spec = SPEC) -> Version:
        identity = Identity("summing", f"1.{number}.0", bytes([number]) + DIGEST[1:])
        engine: Engine = self.hosts[number].engine
        return Version(identity, SPEC, Distribution(), engine, metrics_index=number + 1)

    def answer(self) -> list[list[Any]]:
        """Waits until no worker owes a batch; returns what was sent."""
        while self.scheduler.rows_waiting or any(host.engine.in_flight for host in self.hosts):
            for host in self.hosts:
                host.pump(lambda host=host: not host.engine.in_flight)  # type: ignore[misc]
            self.run()
        sent = [list(message) for message in self.transport.sent]
        self.transport.sent.clear()
        return sent


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Host]]:
    with Host(summing(STEPS[0]), ROWS_MAX, depth=2) as one, Host(summing(STEPS[1]), ROWS_MAX, depth=2) as other:
        yield [one.start(), other.start()]


class Group:
    """An episode group, and what must become of each of its rows."""

    def __init__(self, begun: Begun, version: int) -> None:
        self.begun = begun
        self.versions = [version] * ROWS
        self.sums = np.zeros(ROWS)
        self.has_acted = False
        self.waiting: tuple[int, np.ndarray[Any, Any]] | None = None
        """The act that waits: its sequence, and the sum of what each row observes."""
        self.begins = [False] * ROWS

    def start(self, starts: list[bool], stable: int) -> None:
        """Notes which rows begin anew with the next answer. An act that begins any lets all of them lease anew."""
        self.begins = [begins or flag for begins, flag in zip(self.begins, starts, strict=True)]
        if any(starts) and self.has_acted:
            leased = zip(self.begins, self.versions, strict=True)
            self.versions = [stable if begins else version for begins, version in leased]

    def answered(self) -> list[float]:
        """Returns the right actions of the act that waits."""
        assert self.waiting is not None
        _, values = self.waiting
        self.sums[np.array(self.begins)] = 0
        self.sums += values + [STEPS[version] for version in self.versions]
        self.begins = [False] * ROWS
        self.has_acted = True
        self.waiting = None
        return [float(value) for value in self.sums]


class Simulation:
    """Clients that act, act again too early, send a NaN, begin anew and end, while versions switch."""

    def __init__(self, hosts: list[Host], seed: int) -> None:
        self.random = random.Random(seed)
        self.hosts = hosts
        self.plane = TablePlane(hosts)
        self.welcome = self.plane.open()
        self.sequence = 0
        self.stable = 0
        self.mixed_acts = 0
        self.groups: list[Group] = []
        self.ended: list[Group] = []

    def run(self, steps: int) -> None:
        for _ in range(steps):
            (chosen,) = self.random.choices(
                [self.act, self.settle, self.begin, self.switch, self.end], [12, 5, 2, 1, 1]
            )
            chosen()
            self.check_numbers()
        self.settle()
        while self.groups:
            self.end()
        self.plane.sessions.sweep(self.plane.clock.now_ns, [])

    def next(self) -> int:
        self.sequence += 1
        return self.sequence

    def begin(self) -> None:
        if len(self.groups) < 3:
            self.settle()
            self.groups.append(Group(self.plane.begin(self.welcome, self.next(), ROWS), self.stable))

    def act(self) -> None:
        """Acts in a group, whether or not its last act was answered."""
        if not self.groups:
            return
        group = self.random.choice(self.groups)
        values = np.array([self.random.randrange(5) for _ in range(ROWS)], np.float32)
        observed = np.repeat(values[:, None], WIDTH, axis=1)
        is_nan = self.random.random() < 0.1
        if is_nan:
            observed[1, 0] = np.nan
        starts = [self.random.random() < 0.2 for _ in range(ROWS)]
        mask = bytes(starts) if any(starts) else b""
        expected = ["superseded"] if group.waiting is not None else []
        group.start(starts, self.stable)
        self.mixed_acts += len(set(group.versions)) > 1
        sequence = self.next()
        group.waiting = None if is_nan else (sequence, values * WIDTH)
        self.plane.deliver(b"peer", act(group.begun, sequence, ROWS, episode_start=mask), observed.tobytes())
        self.plane.run()
        sent = self.check(self.take())
        if is_nan:
            # It is refused at once, or when an engine is free to run it.
            expected.append("non_finite")
            if len(sent) < len(expected):
                sent += self.check(self.plane.answer())
        assert codes(sent) == expected

    def take(self) -> list[list[Any]]:
        sent = [list(message) for message in self.plane.transport.sent]
        self.plane.transport.sent.clear()
        return sent

    def check(self, sent: list[list[Any]]) -> list[Message]:
        """Compares the actions; returns the other messages."""
        others: list[Message] = []
        for message in sent:
            reply = decode(bytes(message[1]))
            for group in [*self.groups, *self.ended]:
                if group.waiting is not None and group.waiting[0] == reply.sequence:
                    assert codes([reply]) == ["action"], reply
                    assert np.frombuffer(message[2], np.float32).tolist() == group.answered()
                    break
            else:
                others.append(reply)
        return others

    def settle(self) -> None:
        """Lets the workers answer everything."""
        assert self.check(self.plane.answer()) == []
        assert all(group.waiting is None for group in [*self.groups, *self.ended])

    def switch(self) -> None:
        self.stable = 1 - self.stable
        self.plane.switch(self.stable)

    def end(self) -> None:
        """Ends a group, also one whose act waits: that is still answered, from its own state."""
        if not self.groups:
            return
        group = self.groups.pop(self.random.randrange(len(self.groups)))
        self.ended.append(group)
        self.plane.deliver(b"peer", End(group.begun.session, group.begun.epoch, self.next(), group.begun.episode))
        self.plane.run()
        assert codes(self.check(self.take())) == ["ended"]

    def check_numbers(self) -> None:
        """No row of a table belongs to two rows of groups, or to nobody and somebody."""
        for index, host in enumerate(self.hosts):
            numbers = [
                number
                for group in self.plane.sessions._groups.values()
                for kept, owner in zip(group.states, group.state_owners, strict=True)
                if owner.identity.version == f"1.{index}.0"
                for number in kept.tolist()
                if number
            ]
            assert host.engine.state_rows is not None
            free = host.engine.state_rows._free
            assert len(set(numbers)) == len(numbers)
            assert len(set(free)) == len(free)
            assert not set(numbers) & set(free)


@pytest.mark.parametrize("seed", range(8))
def test_every_row_finds_its_own_state_and_no_row_of_a_table_is_lost(hosts: list[Host], seed: int) -> None:
    simulation = Simulation(hosts, seed)
    simulation.run(150)
    assert simulation.mixed_acts
    for host in hosts:
        assert host.engine.state_rows is not None
        assert host.engine.state_rows.used == 0


def test_a_worker_that_is_replaced_leaves_the_states_as_they_were(hosts: list[Host]) -> None:
    plane = TablePlane(hosts)
    begun = plane.begin(plane.open(), 1, ROWS)

    def actions(sequence: int) -> list[float]:
        plane.deliver(b"peer", act(begun, sequence, ROWS), observation(ROWS))
        plane.run()
        (message,) = plane.answer()
        made: list[float] = np.frombuffer(message[2], np.float32).tolist()
        return made

    assert actions(2) == [4.0] * ROWS
    (host, *_) = hosts
    host.process.kill()
    host.pump(lambda: not host.engine.is_ready)
    host.start()
    assert actions(3) == [8.0] * ROWS
    assert plane.engine.state_rows is None
    plane.ask(b"peer", End(begun.session, begun.epoch, 4, begun.episode))
    assert host.engine.state_rows is not None
    assert host.engine.state_rows.used == 0


def test_an_act_of_mixed_versions_whose_slot_was_overwritten_leaves_the_states_as_they_were(hosts: list[Host]) -> None:
    plane = TablePlane(hosts)
    begun = plane.begin(plane.open(), 1, ROWS)
    group = plane.sessions._groups[begun.episode]
    # A group of so few bytes is granted none.
    group.slots = region = SlotRegion(plane.version.slot_layout(ROWS))
    slot = region.slots[0]

    def actions(sequence: int, starts: bytes = b"") -> list[float]:
        plane.deliver(b"peer", act(begun, sequence, ROWS, episode_start=starts), observation(ROWS))
        plane.run()
        (message,) = plane.answer()
        made: list[float] = np.frombuffer(message[2], np.float32).tolist()
        return made

    assert actions(2) == [4.0] * ROWS
    plane.switch(1)
    assert actions(3, b"\0\1\0") == [8.0, 103.0, 8.0]
    tables = [host.engine.state_rows for host in hosts]
    used = [table.used for table in tables if table is not None]
    slot.observations[0][:] = observation(ROWS)
    write_generation(slot.view, 0, 5)
    plane.deliver(b"peer", act(begun, 4, ROWS, slot=1, generation=5))
    plane.run()
    # Both workers run it, and write states that nobody takes over.
    assert [len(host.engine.in_flight) for host in hosts] == [1, 1]
    write_generation(slot.view, 0, 6)
    (message,) = plane.answer()
    assert codes([decode(bytes(message[1]))]) == ["slot_stale"]
    assert [table.used for table in tables if table is not None] == used == [2, 1]
    group.slots = None
    region.revoke()
    assert actions(5) == [12.0, 206.0, 12.0]
    plane.ask(b"peer", End(begun.session, begun.epoch, 6, begun.episode))
    assert [table.used for table in tables if table is not None] == [0, 0]


def test_an_act_whose_state_was_lost_with_a_device_is_refused_until_its_rows_begin_anew(hosts: list[Host]) -> None:
    (host, *_) = hosts
    plane = TablePlane(hosts)
    welcome = plane.open()
    begun, other = plane.begin(welcome, 1, ROWS), plane.begin(welcome, 2, 1)

    def sent(group: Begun, sequence: int, starts: bytes = b"") -> list[Any]:
        rows = ROWS if group is begun else 1
        plane.deliver(b"peer", act(group, sequence, rows, episode_start=starts), observation(rows))
        plane.run()
        return [
            np.frombuffer(message[2], np.float32).tolist() if len(message) > 2 else decode(bytes(message[1]))
            for message in plane.answer()
        ]

    assert sent(begun, 3) == [[4.0] * ROWS]
    assert sent(begun, 4) == [[8.0] * ROWS]
    # As if they had been on a device.
    host.engine._states_were = "device"
    host.process.kill()
    host.pump(lambda: not host.engine.is_ready)
    host.start()
    (refused,) = sent(begun, 5)
    assert (refused.code, refused.actual) == ("state_lost", "rows 0, 1, 2 in the middle of an episode")
    assert sent(other, 6) == [[4.0]]
    (refused,) = sent(begun, 7, b"\0\1\0")
    assert (refused.code, refused.actual) == ("state_lost", "rows 0, 2 in the middle of an episode")
    assert sent(begun, 8, b"\1\0\1") == [[4.0] * ROWS]
    assert sent(begun, 9) == [[8.0] * ROWS]
    assert sent(other, 10) == [[8.0]]
    for group, sequence in ((begun, 11), (other, 12)):
        plane.ask(b"peer", End(group.session, group.epoch, sequence, group.episode))
    assert host.engine.state_rows is not None
    assert host.engine.state_rows.used == 0


@pytest.fixture
def rows() -> Iterator[StateRows]:
    made = StateRows([State("sum", "sum_next", "float32", [])], 100)
    yield made
    made.close()


def test_rows_that_a_lost_worker_may_still_write_are_withheld(rows: StateRows) -> None:
    first, second = rows.take(2), rows.take(2)
    rows.withhold(first)
    rows.give(second)
    assert set(rows.take(4).tolist()) & set(first.tolist()) == set()
    rows.release_withheld()
    assert set(first.tolist()) <= set(rows.take(2).tolist())


def test_rows_that_were_given_back_last_are_taken_first(rows: StateRows) -> None:
    numbers = rows.take(8)
    rows.give(numbers[:2])
    assert sorted(rows.take(3).tolist()) == [*numbers[:2].tolist(), 9]
    assert rows.used == 9


def test_a_table_has_no_more_memory_than_its_rows_need(rows: StateRows) -> None:
    assert os.fstat(rows.descriptor).st_size == 128 * rows.row_bytes
    with pytest.raises(PermissionError):
        os.ftruncate(rows.descriptor, 2**30)
    with pytest.raises(OSError, match="Operation not permitted"):
        os.pwrite(rows.descriptor, b"x", 2**30)


def test_states_that_were_lost_are_given_back_by_nobody(rows: StateRows) -> None:
    numbers = rows.take(3)
    rows.lose_all()
    assert rows.are_lost(numbers).all()
    rows.give(numbers)
    rows.withhold(numbers)
    rows.release_withheld()
    assert (rows.used, rows.room) == (0, 100)
    assert not rows.are_lost(rows.take(3)).any()


def test_an_act_without_room_for_its_state_is_refused_and_others_go_on(hosts: list[Host]) -> None:
    host = hosts[0]
    plane = TablePlane(hosts)
    welcome = plane.open()
    one, other = plane.begin(welcome, 1, ROWS), plane.begin(welcome, 2, 1)
    state_rows = host.engine.state_rows
    assert state_rows is not None
    kept = state_rows.take(state_rows.room - 1)
    plane.deliver(b"peer", act(one, 3, ROWS), observation(ROWS))
    assert codes(plane.replies()) == ["overloaded"]
    plane.deliver(b"peer", act(other, 4), observation())
    plane.run()
    assert len(plane.answer()) == 1
    state_rows.give(kept)
    plane.deliver(b"peer", act(one, 5, ROWS), observation(ROWS))
    plane.run()
    assert len(plane.answer()) == 1
    for group, sequence in ((one, 6), (other, 7)):
        plane.ask(b"peer", End(group.session, group.epoch, sequence, group.episode))
    assert state_rows.used == 0


def test_states_are_lost_too_where_another_worker_keeps_them_elsewhere(hosts: list[Host]) -> None:
    (host, *_) = hosts
    engine = host.engine
    assert engine.state_rows is not None
    before = engine.state_rows.take(1)
    engine.state_rows.give(before)
    engine._description["states"] = "device"
    engine._take_over_states()
    assert engine.state_rows.are_lost(before).all()
    after = engine.state_rows.take(1)
    engine._description["states"] = ""
    engine._take_over_states()
    assert engine.state_rows.are_lost(after).all()
