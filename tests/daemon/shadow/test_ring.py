"""The ring between the serving process and a shadow: a shadow reads the answered batches whole and in order, or not at all."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion_artifacts.card.model_card import Distribution, Tolerance
from pillion_protocol import Begun
from pilliond.ipc import shadow_page as cell
from pilliond.ipc.control_channel import VersionRequest
from pilliond.ipc.shadow_channel import ShadowRequest
from pilliond.ipc.shadow_page import BATCH_HEAD, ShadowPage, make_shadow_page
from pilliond.serving.shadow_tap import ShadowTap
from pilliond.settings.schema import EngineSettings
from pilliond.shadow.replayer import Replayer
from pilliond.shadow.ring import RingError, SeenBatch, ShadowRing
from pilliond.shadow.states import ShadowStates
from pilliond.versions.loaded_version import Identity, Version
from tests.daemon.support.fakes import DIGEST, SPEC, WIDTH, CountingEngine, DataPlane, act, observation

GAUSSIAN = Distribution("diagonal_gaussian", log_std="log_std")


class TappedBench(DataPlane):
    """A serving loop whose batches are copied into a ring of `ring_bytes`, and the other side of it."""

    def __init__(self, ring_bytes: int = 8_192, *, carries: bool = False) -> None:
        super().__init__(carries=carries)
        descriptor = make_shadow_page(ring_bytes)
        self.tap = ShadowTap(descriptor, self.version, 7)
        self.shadow_page = ShadowPage(descriptor)
        os.close(descriptor)
        self.ring = ShadowRing(self.shadow_page, SPEC)
        self.loop.set_tap(self.tap)
        self.welcome = self.open()
        self.sequence = 1

    def begin_group(self, rows: int = 1) -> Begun:
        self.sequence += 1
        return self.begin(self.welcome, self.sequence, rows)

    def act(self, begun: Begun, rows: int = 1, value: float = 1.0, **fields: Any) -> None:
        self.sequence += 1
        self.ask(b"peer", act(begun, self.sequence, rows, **fields), observation(rows, value))

    def cells(self, *which: int) -> list[int]:
        return [self.shadow_page.cells[each] for each in which]

    def read(self) -> tuple[SeenBatch, float, float]:
        """Returns the next batch, the value that was observed and the action that was sent."""
        batch = self.ring.next()
        assert batch is not None
        seen = float(batch.observations[0][0, 0]), float(batch.outputs[0][0])
        self.ring.release()
        return (batch, *seen)

    def replayer(self, *, carries: bool = False, share: float = 1.0) -> tuple[Replayer, CountingEngine]:
        """Returns a replayer with the same engine, at the reading side of the ring."""
        engine = CountingEngine(8, carries=carries)
        version = Version(Identity("counter", "1.2.4", DIGEST), SPEC, GAUSSIAN, engine)
        named = VersionRequest("counter", "1.2.4", DIGEST, SPEC, GAUSSIAN, None, Tolerance(), [], 0)
        request = ShadowRequest(named, Tolerance(), share, 0.0, 8, EngineSettings(), 1_000, 1)
        return Replayer(request, version, self.shadow_page), engine


@given(st.lists(st.one_of(st.none(), st.integers(1, 8)), max_size=60), st.sampled_from([512, 1_024, 4_096]))
def test_what_is_read_is_what_was_answered_whole_and_in_order_or_was_counted(
    rounds: list[int | None], ring_bytes: int
) -> None:
    bench = TappedBench(ring_bytes)
    groups = {rows: bench.begin_group(rows) for rows in range(1, 9)}
    waiting: list[tuple[int, float]] = []
    skipped = 0
    for number, rows in enumerate([*rounds, *[None] * len(rounds)]):
        if rows is not None:
            bench.act(groups[rows], rows, float(number))
            if bench.cells(cell.NO_ROOM_ROWS) == [skipped + rows]:
                skipped += rows
            else:
                waiting.append((rows, float(number)))
        elif waiting:
            batch, value, action = bench.read()
            assert (len(batch.seeds), value) == waiting.pop(0)
            assert action == value * WIDTH
            assert batch.seeds.tolist() == list(range(len(batch.seeds)))
        else:
            assert bench.ring.next() is None
    assert bench.cells(cell.NO_ROOM_ROWS) == [skipped]


def test_an_episodes_steps_are_counted_from_its_begin_for_each_row() -> None:
    bench = TappedBench()
    begun = bench.begin_group(3)
    bench.act(begun, 3)
    bench.act(begun, 3, episode_start=b"\0\1\0")
    bench.act(begun, 3)
    assert [bench.read()[0].steps.tolist() for _ in range(3)] == [[0, 0, 0], [1, 0, 1], [2, 1, 2]]


def test_acts_of_one_batch_stay_together_and_say_which_of_them_were_drawn() -> None:
    bench = TappedBench()
    one, other = bench.begin_group(2), bench.begin_group(1)
    bench.deliver(b"peer", act(one, 10, 2), observation(2))
    bench.deliver(b"peer", act(other, 11, deterministic=False), observation(1, 5.0))
    bench.run()
    batch, _, _ = bench.read()
    assert [(seen.group, seen.first, seen.rows, seen.is_drawn) for seen in batch.acts] == [
        ((7, one.episode), 0, 2, False),
        ((7, other.episode), 2, 1, True),
    ]
    assert bench.ring.next() is None


def test_batches_that_are_written_before_the_shadow_first_looks_are_compared_as_they_were_sent() -> None:
    bench = TappedBench(1 << 16)
    replayer, _ = bench.replayer()
    begun = bench.begin_group(8)
    for number in range(20):
        bench.act(begun, 8, 1.0 + number)
    assert bench.cells(cell.WRITTEN)[0] > 4_096

    def stop(_: float) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        replayer.run(sleep=stop)
    assert bench.cells(cell.ROWS, cell.AGREED_ROWS) == [160, 160]


def test_what_is_no_batch_is_refused() -> None:
    bench = TappedBench()
    bench.act(bench.begin_group())
    (whole,) = bench.cells(cell.WRITTEN)
    for size, rows in ((8, 1), (whole + 8, 1), (whole, 2)):
        BATCH_HEAD.pack_into(bench.shadow_page.ring, 0, size, 7, rows, 1)
        with pytest.raises(RingError):
            bench.ring.next()


def test_the_same_engine_agrees_also_where_it_carries_a_state_and_rows_were_missed() -> None:
    bench = TappedBench(1_024, carries=True)
    replayer, _ = bench.replayer(carries=True)
    begun = bench.begin_group(2)
    for number in range(40):
        bench.act(begun, 2, float(number), episode_start=b"\0\1" if number % 10 == 5 else b"")
        if number % 20 > 12:
            continue
        replayer.look()
    replayer.look()
    rows, agreed, missed, skipped = bench.cells(cell.ROWS, cell.AGREED_ROWS, cell.MID_EPISODE_ROWS, cell.NO_ROOM_ROWS)
    assert rows == agreed > 20
    assert missed > 0
    assert rows + missed + skipped == 80


def test_rows_that_its_engine_fails_to_run_are_counted_and_their_episodes_do_not_continue() -> None:
    bench = TappedBench(carries=True)
    replayer, engine = bench.replayer(carries=True)
    begun = bench.begin_group(2)
    bench.act(begun, 2)
    engine.fails = True
    replayer.look()
    engine.fails = False
    bench.act(begun, 2)
    replayer.look()
    bench.act(begun, 2, episode_start=b"\1\1")
    replayer.look()
    assert bench.cells(cell.FAILED_ROWS, cell.MID_EPISODE_ROWS, cell.ROWS, cell.AGREED_ROWS) == [2, 2, 2, 2]


def test_the_memory_of_states_is_bounded_and_the_group_longest_silent_is_forgotten() -> None:
    bench = TappedBench(carries=True)
    states = ShadowStates(bench.version, 12)
    groups = [bench.begin_group() for _ in range(3)]
    runnable = []
    for number in (0, 1, 0, 2, 0, 1):
        bench.act(groups[number])
        batch = bench.ring.next()
        assert batch is not None
        ran, carried = states.put(batch, np.ones(1, bool))
        states.take(batch, ran, [array[ran] for array in carried])
        runnable.append(bool(ran[0]))
        bench.ring.release()
        assert len(states) <= 2
    assert runnable == [True, True, True, True, True, False]
