"""A torch policy on a simulated device, and a serving process in small that gives it batches through a real arena."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from pillion_protocol import TensorSpec
from pillion_worker.arena import (
    COMPLETED,
    COMPUTE_NS,
    COPY_IN_NS,
    COPY_OUT_NS,
    FAILURE_BYTES,
    MEMORY,
    NUMBER,
    OUTCOME,
    ROWS,
    SUBMITTED,
    ArenaLayout,
    block_of,
)
from pillion_worker.doorbell import ring_worker, wait_for_rings
from pillion_worker.engines.torch import TorchEngine
from pillion_worker.runs.pipelined_loop import PipelinedBatchLoop
from pillion_worker.tensors import Array, LoadRequest, TensorMemory
from pillion_worker.torch_engine import cuda
from pilliond.engine.load_request import load_request
from pilliond.engine.worker_arena import OwnArena
from tests.worker.support.policies import Policy
from tests.worker.support.simulated_device import SimulatedDevice
from tests.worker.support.torch_policies import policy, script

ROWS_MAX = 6


class Scaling(torch.nn.Module):
    """Two inputs and two outputs; fails for a negative number in the first row."""

    def forward(self, images: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if bool(numbers[0, 0] < 0):
            raise RuntimeError("negative")
        return numbers * 2 + images.float().sum(dim=1, keepdim=True), numbers[:, 0] - 1


@cache
def scaling() -> Policy:
    """`Scaling` as TorchScript."""
    observation = [TensorSpec("images", "uint8", [2]), TensorSpec("numbers", "float32", [3])]
    outputs = [TensorSpec("action", "float32", [3]), TensorSpec("value", "float32", [])]
    return policy(script(Scaling()), observation, outputs)


def expected(images: Array, numbers: Array) -> list[Array]:
    """What `Scaling` returns."""
    return [numbers * 2 + images.astype(np.float32).sum(axis=1, keepdims=True), numbers[:, 0] - 1]


def request_for(its: Policy, **settings: Any) -> LoadRequest:
    """The request for a torch program on a device, with six rows a batch."""
    fields = {"rows_max": ROWS_MAX, "model_kind": "torchscript", "device": "cuda:0", **settings}
    return load_request(its.spec, its.parameters, its.states, engine="torch", **fields)


@contextmanager
def opened(device: SimulatedDevice) -> Iterator[None]:
    """The engine takes this device for its CUDA device."""
    kept = cuda.open_device
    cuda.open_device = lambda *_: device  # type: ignore[assignment]
    try:
        with torch.inference_mode():
            yield
    finally:
        cuda.open_device = kept


class Batch(NamedTuple):
    """What is to be submitted, and when at the earliest."""

    images: Array
    numbers: Array
    at_ns: int = 0


class Answer(NamedTuple):
    """What came of a batch."""

    outcome: int
    message: str
    outputs: list[Array]
    times_ns: list[int]
    """Copy in, compute and copy out."""
    answered_ns: int


def batch(rows: int, seed: int = 0, at_ns: int = 0) -> Batch:
    """A batch of random rows."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 255, (rows, 2), np.uint8)
    return Batch(images, random.random((rows, 3), np.float32), at_ns)


class Serving:
    """Submits batches as memories get free and their time comes, and takes the answers, while `run` serves."""

    def __init__(self, device: SimulatedDevice, batches: Sequence[Batch], depth: int, **settings: Any) -> None:
        self._device = device
        self._due = list(batches)
        self._request = request_for(scaling(), depth=depth, **settings)
        self.engine = TorchEngine(scaling().model, self._request, "cuda:0")
        layout = ArenaLayout(
            self._request.observation, self.engine.outputs, [], self._request.room, self._request.depth
        )
        self._own = OwnArena(layout)
        self.arena = self._own.arena
        self._free: list[TensorMemory] = list(self.arena.memories)
        self._flying: list[tuple[TensorMemory, int]] = []
        self._submitted = 0
        self.answers: list[Answer] = []

    def run(self) -> list[Answer]:
        """Serves every batch; returns their answers."""
        try:
            assert self.engine.register(self.arena.bytes)
            runs: Any = [self.engine.bind(memory) for memory in self.arena.memories]
            # Only what serves counts.
            self._device.operations.clear()
            self._device.on_time = self._pump
            _, bell, complete = self._own.for_worker
            clock = self._tell_time
            PipelinedBatchLoop(self.arena, bell, complete, runs, 0, clock, self._wait).run()
            return self.answers
        finally:
            self._own.close()

    def _tell_time(self) -> int:
        return self._device.now_ns

    def _wait(self, bell: int) -> int:
        """As `wait_for_rings`, in the time of the device."""
        self._pump()
        while not select.select([bell], [], [], 0)[0]:
            if not self._due:
                os.close(self._own.submit)
                self._own._open.remove(self._own.submit)
                break
            self._device.now_ns = max(self._device.now_ns, self._due[0].at_ns)
            self._pump()
        return wait_for_rings(bell)

    def _pump(self) -> None:
        cells = self.arena.cells
        while len(self.answers) < cells[COMPLETED]:
            self._take()
        while self._due and self._free and self._due[0].at_ns <= self._device.now_ns:
            self._submit(self._due.pop(0), self._free.pop())

    def _submit(self, due: Batch, memory: TensorMemory) -> None:
        cells = self.arena.cells
        for array, rows in zip(memory.inputs, due, strict=False):
            self._device.touch(array, writes=True)
            array[: len(due.numbers)] = rows
        for array in memory.outputs.values():
            array.fill(0)
        self._submitted = number = self._submitted + 1
        block = block_of((number - 1) % self._request.depth)
        cells[block + NUMBER] = number
        cells[block + ROWS] = len(due.numbers)
        cells[block + MEMORY] = next(index for index, each in enumerate(self.arena.memories) if each is memory)
        cells[block + OUTCOME] = 0
        cells[SUBMITTED] = number
        assert ring_worker(self._own.submit)
        self._flying.append((memory, len(due.numbers)))

    def _take(self) -> None:
        cells, block = self.arena.cells, block_of(len(self.answers) % self._request.depth)
        memory, rows = self._flying.pop(0)
        outputs = []
        for array in memory.outputs.values():
            self._device.touch(array, writes=False)
            outputs.append(array[:rows].copy())
        message = self.arena.failure(len(self.answers) % self._request.depth, cells[block + FAILURE_BYTES])
        times_ns = [cells[block + cell] for cell in (COPY_IN_NS, COMPUTE_NS, COPY_OUT_NS)]
        self.answers.append(Answer(cells[block + OUTCOME], message, outputs, times_ns, self._device.now_ns))
        self._free.append(memory)
