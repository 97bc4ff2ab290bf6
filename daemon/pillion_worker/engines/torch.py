"""torch: programs of `torch.export`, and TorchScript, run as they are.

Rows that do not fill a bucket leave the old contents behind them. With `strict_rows` every run has that many rows.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch

from pillion_worker.buckets import buckets_for
from pillion_worker.device_memory.meter import DeviceMeter
from pillion_worker.devices import choose
from pillion_worker.errors import EngineError
from pillion_worker.memory import private_memory
from pillion_worker.model_source import Model
from pillion_worker.runs.interface import Run
from pillion_worker.tensors import LoadRequest, State, Tensor, TensorMemory, fallback_text
from pillion_worker.torch_engine import cuda
from pillion_worker.torch_engine.compiled import compiled_call
from pillion_worker.torch_engine.device_states import DeviceStates
from pillion_worker.torch_engine.pipeline import DeviceRunner
from pillion_worker.torch_engine.precision import in_precision, precision_on
from pillion_worker.torch_engine.program import Call, Program, device_error, load_program, run_trial
from pillion_worker.torch_engine.runner import Binding, CpuRunner, Runner

_INFERENCE: Final = torch.inference_mode()


def prepare() -> None:
    """Imports what torch itself imports when it reads its first program, which takes longer than reading it."""
    importlib.import_module("torch.export.pt2_archive")


def load(model: Model, request: LoadRequest, meter: DeviceMeter | None = None) -> TorchEngine:
    """Loads a model. Raises `EngineError` if the program disagrees with the request, or could run code of its file."""
    # A thread that takes part in a batch may not take a core for anything else.
    torch.set_num_threads(request.threads)
    with contextlib.suppress(RuntimeError):
        torch.set_num_interop_threads(1)
    # A worker has one thread and one engine, so this is entered once, not in every run.
    if not torch.is_inference_mode_enabled():
        _INFERENCE.__enter__()
    engine = choose(request, cuda.why_missing, lambda device, fallback: make(model, request, device, fallback), meter)
    assert isinstance(engine, TorchEngine)
    return engine


def make(model: Model, request: LoadRequest, device: str, fallback: str) -> TorchEngine:
    """Makes the engine as it was asked for, or plain if it only runs so."""
    try:
        return TorchEngine(model, request, device, fallback)
    except EngineError as error:
        if request.is_plain:
            raise
        return TorchEngine(model, request.made_plain(str(error)), device, fallback)


class TorchEngine:
    """One torch policy on one device.

    Raises `EngineError` if the program disagrees with its card: a program that lies about its shapes never serves. A device
    that fails, such as for want of memory, is an `EngineError` as well.
    """

    kind = "torch"

    def __init__(self, model: Model, request: LoadRequest, device: str, fallback: str = "") -> None:
        self._request = request
        self._device = device
        try:
            self._load(model, request, device, fallback)
        except RuntimeError as error:
            if device == "cpu":
                raise
            # Whatever allocates there may find no memory; the first is the context, whose error is no OutOfMemoryError.
            raise device_error(error) from None

    def _load(self, model: Model, request: LoadRequest, device: str, fallback: str) -> None:
        self.buckets = [request.strict_rows] if request.strict_rows else buckets_for(request.rows_max)
        self._precision, why_not = precision_on(device, request)
        opened = None if device == "cpu" else cuda.open_device(device, self._precision, request.device_memory_bytes_max)
        self._place = opened.place if opened else "cpu"
        given: Sequence[Tensor | State] = [*request.observation, *request.states]
        self._given = [tensor.name for tensor in given]
        self._made = _names_of_outputs(request)
        program = load_program(
            model, request.model_kind, self.buckets, self._place, self._example(self._given, 2), request.channels_last
        )
        if program.input_count not in (None, len(given)):
            raise EngineError(
                f"the program's inputs are not the card's: expected {len(given)} ({', '.join(self._given)}), "
                f"got {program.input_count}"
            )
        self._order = _agreed(program.inputs, self._given, "inputs")
        self._index = {name: index for index, name in enumerate(_agreed(program.outputs, self._made, "outputs"))}
        call, why_not_compiled = self._call_of(model, program)
        self._compiled = request.compiles and not why_not_compiled
        self._fallback = "; ".join(filter(None, [fallback, request.fallback, why_not, why_not_compiled]))
        self._runner: Runner = DeviceRunner(call, opened) if opened else CpuRunner(call)
        self._states = DeviceStates(opened, request.states) if opened and request.states else None
        self.outputs = self._actual_outputs(self._runner.call)

    def _call_of(self, model: Model, program: Program) -> tuple[Call, str]:
        """The program as it runs, and why it is not compiled although that was asked for."""
        why_not = ""
        if self._request.compiles:
            example = self._example(self._order, 2)
            try:
                asked = self._request._replace(precision=self._precision)
                return compiled_call(model, asked, program, self.buckets, self._device, example), ""
            except EngineError as error:
                why_not = fallback_text("float32", False, True, str(error))
        return in_precision(program.call, self._precision, self._place), why_not

    def bind(self, memory: TensorMemory) -> list[Run]:
        """As `Engine.bind`."""
        pieces, of_rows = self._strict_pieces(memory) if self._request.strict_rows else self._bucket_pieces(memory)
        del of_rows[self._request.rows_max + 1 :]
        if self._states is not None and memory.state_rows:
            assert isinstance(self._runner, DeviceRunner)
            return [*self._runner.carried_runs_of(pieces, of_rows, self._states, memory.state_rows)]
        runs = self._runner.runs_of(pieces)
        return [runs[index] for index in of_rows]

    @property
    def keeps_states(self) -> bool:
        """As `Engine.keeps_states`."""
        return self._states is not None

    def register(self, arena: memoryview) -> bool:
        """As `Engine.register`."""
        return self._runner.register(arena)

    def idle_run(self) -> Run | None:
        """As `Engine.idle_run`."""
        if self._device == "cpu":
            return None
        rows = self.buckets[0]
        memory = private_memory(self._request._replace(rows_max=rows), self.outputs)
        return self._runner.runs_of([[self._piece(memory, 0, rows)]])[0]

    def describe(self) -> dict[str, Any]:
        described = {
            "kind": self.kind,
            "version": torch.__version__,
            "device": self._device,
            "precision": self._precision,
            "channels_last": self._request.channels_last,
            "compiled": self._compiled,
            "threads": self._request.threads,
            "buckets": self.buckets,
            "strict": bool(self._request.strict_rows),
        }
        if self.keeps_states:
            described["states"] = "device"
        if self._fallback:
            described["fallback"] = self._fallback
        return described

    def _bucket_pieces(self, memory: TensorMemory) -> tuple[list[list[Binding]], list[int]]:
        """The pieces of each run, and for each count of rows the index of its run."""
        of_rows = [0]
        for index, bucket in enumerate(self.buckets):
            of_rows += [index] * (bucket + 1 - len(of_rows))
        return [[self._piece(memory, 0, rows)] for rows in self.buckets], of_rows

    def _strict_pieces(self, memory: TensorMemory) -> tuple[list[list[Binding]], list[int]]:
        step, room = self._request.strict_rows, self._request.room
        pieces = [self._piece(memory, first, step) for first in range(0, room, step)]
        runs = [pieces[: number + 1] for number in range(len(pieces))]
        return runs, [max(0, rows - 1) // step for rows in range(room + 1)]

    def _piece(self, memory: TensorMemory, first: int, rows: int) -> Binding:
        read = dict(zip(self._given, [*memory.inputs, *(before for before, _ in memory.states)]))
        written = dict(memory.outputs)
        for state, (_, after) in zip(self._request.states, memory.states):
            written[state.output] = after
        names = list(written)
        return Binding(
            [read[name][first : first + rows] for name in self._order],
            [(self._index[name], name, array[first : first + rows]) for name, array in written.items()],
            [(self._order.index(state.name), names.index(state.output)) for state in self._request.states],
        )

    def _example(self, names: Sequence[str], rows: int) -> list[torch.Tensor]:
        """Inputs of zeros, on the device."""
        given: Sequence[Tensor | State] = [*self._request.observation, *self._request.states]
        kinds = {tensor.name: tensor for tensor in given}
        arrays = [np.zeros((rows, *kinds[name].shape), kinds[name].dtype) for name in names]
        return [torch.from_numpy(array).to(self._place) for array in arrays]

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
