"""Runs a program on the CPU: one call, and a copy of each output. Hot path.

The inputs are views of the arena, made once. One at an unaligned address is copied to an aligned one first: vectorised
kernels round the first elements of an unaligned array differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch

from pillion_worker.arena import ALIGNMENT_BYTES
from pillion_worker.errors import EngineError
from pillion_worker.memory import aligned_zeros
from pillion_worker.runs.interface import Run
from pillion_worker.tensors import Array
from pillion_worker.torch_engine.program import Call, first_line


class Binding(NamedTuple):
    """Rows that run together."""

    inputs: list[Array]
    """What a run reads, in the order of the program."""
    outputs: list[tuple[int, str, Array]]
    """What it writes: the position among the program's outputs, the name, and the array."""
    states: Sequence[tuple[int, int]] = ()
    """For each recurrent state its index in `inputs`, and that of the next state in `outputs`."""


class Runner(Protocol):
    """A device that runs programs."""

    call: Call
    """The program as this device runs it."""

    def register(self, arena: memoryview) -> bool:
        """As `Engine.register`."""

    def runs_of(self, runs: Sequence[Sequence[Binding]]) -> Sequence[Run]:
        """Returns the runs of one memory; each runs its pieces one after the other. May raise `EngineError`, as they may."""


class CpuRunner:
    """The CPU."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self._scratch: dict[tuple[int, tuple[int, ...]], Array] = {}

    def register(self, arena: memoryview) -> bool:
        """Returns False: the CPU reads any memory."""
        return False

    def runs_of(self, runs: Sequence[Sequence[Binding]]) -> list[Run]:
        """As `Runner.runs_of`."""
        return [self._run_of(run) for run in runs]

    def _run_of(self, pieces: Sequence[Binding]) -> Run:
        call = self.call
        steps = [self._step(piece) for piece in pieces]

        def run() -> None:
            try:
                for before, inputs, outputs in steps:
                    for to, source in before:
                        to.copy_(source)
                    made = call(*inputs)
                    for position, name, target, shape, dtype in outputs:
                        value = made[position]
                        # copy_ would repeat a single row, and convert another dtype.
                        if value.shape != shape or value.dtype is not dtype:
                            raise EngineError(mismatch(name, target, value))
                        target.copy_(value)
            except EngineError:
                raise
            except Exception as error:
                raise EngineError(f"torch: {first_line(error)}") from error

        return run

    def _step(self, piece: Binding) -> tuple[list[Any], tuple[torch.Tensor, ...], list[Any]]:
        """The copies to make before the call (to, from), its inputs, and where each output goes."""
        before, inputs = [], []
        for position, array in enumerate(piece.inputs):
            tensor = torch.from_numpy(array)
            if array.ctypes.data % ALIGNMENT_BYTES:
                target = torch.from_numpy(self._aligned(position, array))
                before.append((target, tensor))
                tensor = target
            inputs.append(tensor)
        outputs = []
        for position, name, array in piece.outputs:
            target = torch.from_numpy(array)
            outputs.append((position, name, target, target.shape, target.dtype))
        return before, tuple(inputs), outputs

    def _aligned(self, position: int, array: Array) -> Array:
        """Memory for an input, which all pieces share: they run one after the other."""
        key = (position, array.shape)
        if key not in self._scratch:
            self._scratch[key] = aligned_zeros(array.shape, array.dtype)
        return self._scratch[key]


def mismatch(name: str, target: torch.Tensor, value: Any) -> str:
    """What is wrong with an output of a run."""
    expected = f"{_short(target.dtype)} {list(target.shape)}"
    if not isinstance(value, torch.Tensor):
        return f"output {name!r}: expected {expected}, got {type(value).__name__}"
    return f"output {name!r}: expected {expected}, got {_short(value.dtype)} {list(value.shape)}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).rpartition(".")[2]
