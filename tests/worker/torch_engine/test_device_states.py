"""Recurrent states that stay on a device: each batch finds what the ones before it wrote, and no state is copied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pillion_artifacts.card.model_card import StateCard
from pillion_protocol import Spec, TensorSpec
from pillion_worker.arena import ArenaLayout
from pillion_worker.engines.torch import TorchEngine
from pillion_worker.runs.interface import PipelinedRun
from pillion_worker.runs.state_table import IN_ARENA, START
from pillion_worker.tensors import TensorMemory
from pilliond.engine.worker_arena import OwnArena
from tests.worker.support.pipelines import ROWS_MAX, opened, request_for
from tests.worker.support.policies import Policy
from tests.worker.support.simulated_device import HOST_NS, SimulatedDevice
from tests.worker.support.torch_policies import script

WIDTH = 50
"""So wide a state that a copy of it would be seen."""


class Summing(torch.nn.Module):
    """Its action is the sum of the observations so far; two states hold that, one of them many times."""

    def forward(self, observation: torch.Tensor, total: torch.Tensor, wide: torch.Tensor) -> Any:
        total = total + observation[:, 0]
        return total, total, wide + observation


def summing() -> Policy:
    states = [
        StateCard("total", "total_next", "float32", []),
        StateCard("wide", "wide_next", "float32", [WIDTH]),
    ]
    spec_in, spec_out = [TensorSpec("observation", "float32", [1])], [TensorSpec("action", "float32", [])]
    return Policy(script(Summing()), Spec(spec_in, spec_out), [], states)


class Bound:
    """An engine on a device, with two memories of an arena."""

    def __init__(self, device: SimulatedDevice, **settings: Any) -> None:
        its = summing()
        self.device = device
        request = request_for(its, depth=2, **settings)
        self.engine = TorchEngine(its.model, request, "cuda:0")
        layout = ArenaLayout(request.observation, self.engine.outputs, request.states, request.room, request.depth)
        self.own = OwnArena(layout)
        self.memories: list[TensorMemory] = self.own.arena.memories
        assert self.engine.register(self.own.arena.bytes)
        self.runs: Any = [self.engine.bind(memory) for memory in self.memories]
        device.operations.clear()

    def begin(self, index: int, values: list[float], reads: list[int], writes: list[int]) -> PipelinedRun:
        """Begins a batch in a memory."""
        memory = self.memories[index]
        rows = len(values)
        memory.inputs[0][:rows, 0] = values
        memory.state_rows[0][:rows], memory.state_rows[1][:rows] = reads, writes
        run: PipelinedRun = self.runs[index][rows]
        run.begin()
        return run

    def run(self, values: list[float], reads: list[int], writes: list[int]) -> list[float]:
        self.begin(0, values, reads, writes).finish()
        return self.actions(0, len(values))

    def actions(self, index: int, rows: int) -> list[float]:
        made: list[float] = self.memories[index].outputs["action"][:rows].tolist()
        return made


@pytest.fixture(params=[0, 2], ids=["buckets", "strict"])
def bound(request: pytest.FixtureRequest) -> Iterator[Bound]:
    device = SimulatedDevice({"copy in": 40 * HOST_NS, "compute": 100 * HOST_NS, "copy out": 20 * HOST_NS}.__getitem__)
    with opened(device):
        made = Bound(device, strict_rows=request.param)
        yield made
        made.own.close()


def test_rows_read_what_they_wrote_wherever_they_lie_in_a_batch(bound: Bound) -> None:
    assert bound.run([1, 2, 3], [START] * 3, [1, 2, 3]) == [1, 2, 3]
    assert bound.run([10, 10, 10, 10, 10], [3, START, 1, 2, START], [4, 5, 6, 7, 8]) == [13, 10, 11, 12, 10]
    assert bound.run([1], [6], [1]) == [12]
    assert bound.run([0, 0], [1, 6], [2, 3]) == [12, 11]
    assert bound.run([5], [START], [9]) == [5]


def test_a_batch_that_begins_while_another_one_runs_reads_what_that_writes(bound: Bound) -> None:
    first = bound.begin(0, [1, 2], [START, START], [1, 2])
    second = bound.begin(1, [10, 10], [2, 1], [3, 4])
    assert not first.is_done()
    first.finish()
    second.finish()
    assert (bound.actions(0, 2), bound.actions(1, 2)) == ([1, 2], [12, 11])


def test_the_table_grows_and_keeps_its_rows(bound: Bound) -> None:
    assert bound.run([1, 2], [START, START], [1, 63]) == [1, 2]
    assert bound.run([1, 1], [63, 1], [64, 1_000]) == [3, 2]
    assert bound.run([1, 1, 1], [64, 1_000, START], [2, 3, 4]) == [4, 3, 1]


def test_what_is_written_to_no_row_is_kept_by_none(bound: Bound) -> None:
    assert bound.run([7, 8], [START, START], [START, START]) == [7, 8]
    assert bound.run([1, 1], [START, START], [1, 2]) == [1, 1]


def test_states_in_the_arena_are_read_and_written_there(bound: Bound) -> None:
    assert bound.run([5, 5], [START, START], [1, 2]) == [5, 5]
    memory = bound.memories[0]
    (total, total_next), (wide, wide_next) = memory.states
    total[:2], wide[:2] = [100, 200], 3
    assert bound.run([1, 2], [IN_ARENA, 0], [0, 0]) == [101, 202]
    assert total_next[:2].tolist() == [101, 202]
    assert wide_next[:2].tolist() == [[4] * WIDTH, [5] * WIDTH]
    assert bound.run([1, 1], [1, 2], [3, 4]) == [6, 6]


def test_no_state_is_copied_to_the_device_or_back(bound: Bound) -> None:
    bound.run([1, 2], [START, START], [1, 2])
    copies = [each for each in bound.device.operations if each.stream != "compute"]
    assert len(copies) == 2
    assert all(0 < each.bytes_written < ROWS_MAX * WIDTH for each in copies)


def test_the_engine_says_where_its_states_are(bound: Bound) -> None:
    assert bound.engine.keeps_states
    assert bound.engine.describe()["states"] == "device"
