"""torch: programs of `torch.export`, and TorchScript, run as they are.

Rows that do not fill a bucket leave the old contents behind them. With `strict_rows` every run has that many rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch

from pillion_worker.buckets import buckets_for
from pillion_worker.devices import choose
from pillion_worker.errors import EngineError
from pillion_worker.model_source import Model
from pillion_worker.tensors import LoadRequest, State, Tensor, TensorMemory
from pillion_worker.torch_engine.program import Call, load_program, run_trial
from pillion_worker.torch_engine.runner import Binding, CpuRunner, Runner

_INFERENCE: Final = torch.inference_mode()


def load(model: Model, request: LoadRequest) -> TorchEngine:
    """Loads a model. Raises `EngineError` if the program disagrees with the request, or could run code of its file."""
    # A thread that takes part in a batch may not take a core for anything else.
    torch.set_num_threads(request.threads)
    with contextlib.suppress(RuntimeError):
        torch.set_num_interop_threads(1)
    # A worker has one thread and one engine, so this is entered once, not in every run.
    if not torch.is_inference_mode_enabled():
        _INFERENCE.__enter__()
    engine = choose(request, _missing, lambda device, fallback: TorchEngine(model, request, device, fallback))
    assert isinstance(engine, TorchEngine)
    return engine


def _missing(index: int) -> str:
    """Why there is no such CUDA device; empty if there is one."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    count = torch.cuda.device_count()
    return "" if index < count else f"torch {torch.__version__} finds {count} CUDA devices"


class TorchEngine:
    """One torch policy on one device.

    Raises `EngineError` if the program disagrees with its card: a program that lies about its shapes never serves.
    """

    kind = "torch"

    def __init__(self, model: Model, request: LoadRequest, device: str, fallback: str = "") -> None:
        self._request = request
        self._device = device
        self._fallback = fallback
        self.buckets = [request.strict_rows] if request.strict_rows else buckets_for(request.rows_max)
        self._precision = request.precision
        if device == "cpu" and request.precision != "float32":
            self._precision = "float32"
            self._fallback = fallback or f"{request.precision} was asked for: only a CUDA device computes in it"
        if device != "cpu":
            from pillion_worker.torch_engine.cuda import prepare

            prepare(device, request.precision, request.device_memory_bytes_max)
        given: Sequence[Tensor | State] = [*request.observation, *request.states]
        self._given = [tensor.name for tensor in given]
        self._made = _names_of_outputs(request)
        program = load_program(model, request.model_kind, self.buckets, device, self._example(self._given, 2))
        if program.input_count not in (None, len(given)):
            raise EngineError(
                f"the program's inputs are not the card's: expected {len(given)} ({', '.join(self._given)}), "
                f"got {program.input_count}"
            )
        self._order = _agreed(program.inputs, self._given, "inputs")
        self._index = {name: index for index, name in enumerate(_agreed(program.outputs, self._made, "outputs"))}
        self._runner = _runner_on(device, program.call, self._precision)
        self.outputs = self._actual_outputs(self._runner.call)

    def bind(self, memory: TensorMemory) -> list[Callable[[], None]]:
        """As `Engine.bind`."""
        runs = self._strict_runs(memory) if self._request.strict_rows else self._bucket_runs(memory)
        return runs[: self._request.rows_max + 1]

    def register(self, arena: memoryview) -> bool:
        """As `Engine.register`."""
        return self._runner.register(arena)

    def describe(self) -> dict[str, Any]:
        described = {
            "kind": self.kind,
            "version": torch.__version__,
            "device": self._device,
            "precision": self._precision,
            "threads": self._request.threads,
            "buckets": self.buckets,
            "strict": bool(self._request.strict_rows),
        }
        if self._fallback:
            described["fallback"] = self._fallback
        return described

    def _bucket_runs(self, memory: TensorMemory) -> list[Callable[[], None]]:
        runs = [self._runner.run_of([self._piece(memory, 0, rows)]) for rows in self.buckets]
        by_rows: list[Callable[[], None]] = [runs[0]]
        for bucket, run in zip(self.buckets, runs):
            by_rows += [run] * (bucket + 1 - len(by_rows))
        return by_rows

    def _strict_runs(self, memory: TensorMemory) -> list[Callable[[], None]]:
        step, room = self._request.strict_rows, self._request.room
        pieces = [self._piece(memory, first, step) for first in range(0, room, step)]
        runs = [self._runner.run_of(pieces[: number + 1]) for number in range(len(pieces))]
        return [runs[max(0, rows - 1) // step] for rows in range(room + 1)]

    def _piece(self, memory: TensorMemory, first: int, rows: int) -> Binding:
        read = dict(zip(self._given, [*memory.inputs, *(before for before, _ in memory.states)]))
        written = dict(memory.outputs)
        for state, (_, after) in zip(self._request.states, memory.states):
            written[state.output] = after
        return Binding(
            [read[name][first : first + rows] for name in self._order],
            [(self._index[name], name, array[first : first + rows]) for name, array in written.items()],
        )

    def _example(self, names: Sequence[str], rows: int) -> list[torch.Tensor]:
        """Inputs of zeros, on the device."""
        given: Sequence[Tensor | State] = [*self._request.observation, *self._request.states]
        kinds = {tensor.name: tensor for tensor in given}
        arrays = [np.zeros((rows, *kinds[name].shape), kinds[name].dtype) for name in names]
        return [torch.from_numpy(array).to(self._device) for array in arrays]

    def _actual_outputs(self, call: Call) -> list[Tensor]:
        """Runs one row and two rows of zeros, and returns each output and parameter with the shape that a row really has."""
        request = self._request
        expected: dict[str, Tensor | State] = {tensor.name: tensor for tensor in request.outputs}
        expected.update({state.output: state for state in request.states})
        for rows in (1, 2):
            made = run_trial(call, self._example(self._order, rows))
            if len(made) != len(self._made):
                names = ", ".join(self._made)
                raise EngineError(f"the program: expected {len(self._made)} outputs ({names}), got {len(made)}")
            actual = {name: _described(name, made[self._index[name]], rows) for name in self._made}
            for name, (dtype, shape) in actual.items():
                if name in expected:
                    wanted = expected[name]
                    if dtype != wanted.dtype or shape != list(wanted.shape):
                        raise EngineError(
                            f"output {name!r} of {rows} rows: expected {wanted.dtype} {[rows, *wanted.shape]}, "
                            f"got {dtype} {[rows, *shape]}"
                        )
                elif np.dtype(dtype).kind != "f":
                    raise EngineError(f"output {name!r} of {rows} rows: expected floats, got {dtype} {[rows, *shape]}")
        parameters = [name for name in request.parameters if name not in expected]
        return [Tensor(name, *actual[name]) for name in [*(tensor.name for tensor in request.outputs), *parameters]]


def _names_of_outputs(request: LoadRequest) -> list[str]:
    """What a program returns in order: the card's outputs, the next states, then further parameters."""
    names = [tensor.name for tensor in request.outputs] + [state.output for state in request.states]
    return names + [name for name in request.parameters if name not in names]


def _agreed(offered: Sequence[str] | None, wanted: list[str], what: str) -> list[str]:
    """The names in the order of the program: its own where it has names, else those of the card by position."""
    if offered is None:
        return wanted
    if sorted(offered) != sorted(wanted):
        raise EngineError(f"the program's {what} are not the card's: expected {sorted(wanted)}, got {sorted(offered)}")
    return list(offered)


def _described(name: str, value: Any, rows: int) -> tuple[str, list[int]]:
    """The dtype of an output and the shape of its rows. Raises `EngineError` if they are not rows of numbers."""
    if not isinstance(value, torch.Tensor):
        raise EngineError(f"output {name!r}: expected a tensor, got {type(value).__name__}")
    dtype, shape = str(value.dtype).rpartition(".")[2], list(value.shape)
    if shape[:1] != [rows]:
        raise EngineError(f"output {name!r} of {rows} rows: expected [{rows}, ...], got {dtype} {shape}")
    try:
        np.dtype(dtype)
    except TypeError:
        raise EngineError(f"output {name!r}: expected a dtype that numpy has, got {dtype}") from None
    return dtype, shape[1:]


def _runner_on(device: str, call: Call, precision: str) -> Runner:
    if device == "cpu":
        return CpuRunner(call)
    from pillion_worker.torch_engine.cuda import CudaRunner

    return CudaRunner(call, device, precision)
