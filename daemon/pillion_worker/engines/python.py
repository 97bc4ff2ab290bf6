"""A Python policy: what the factory of an installed package makes of the weights. Hot path.

Nothing of the artifact is executed: it brings the weights and names the factory. The factory is called once,
`factory(weights, **arguments)`, and returns the policy: a function of the observations and states by name, arrays
[rows, …], that returns every output, parameter and next state by name, arrays [rows, …] of the dtypes and shapes that the
card states.

The policy is only called with the row counts that it was warmed for, so that what compiles for each shape (JAX,
torch.compile) never compiles while it serves. Rows that do not fill a shape hold old contents.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

import numpy as np

from pillion_worker.buckets import buckets_for
from pillion_worker.device_memory.meter import DeviceMeter
from pillion_worker.errors import EngineError, one_line
from pillion_worker.limits import TRACEBACK_CHARS_MAX
from pillion_worker.memory import aligned_zeros
from pillion_worker.model_source import Model, view_of
from pillion_worker.python_policy.installed_factory import find_factory
from pillion_worker.python_policy.weights import read_weights
from pillion_worker.runs.interface import Run
from pillion_worker.sandbox import end_group_with_leader
from pillion_worker.tensors import Array, LoadRequest, State, Tensor, TensorMemory

_TRIALS: Final = 2
"""Buckets that a new policy is tried in: a policy that mixes up rows and other axes fails in the second."""

_NVIDIA: Final = "/dev/nvidiactl"
"""It is there where a GPU can be used."""

_Policy = Callable[[dict[str, Array]], Any]


def load(model: Model, request: LoadRequest, meter: DeviceMeter | None = None) -> PythonEngine:
    """Makes the policy. Raises `EngineError` if its package is not allowed, or its answers are not what the card states."""
    return PythonEngine(model, request, meter)


class PythonEngine:
    """One Python policy. Whatever its package raises, `SystemExit` too, is an `EngineError`."""

    kind = "python"

    def __init__(self, model: Model, request: LoadRequest, meter: DeviceMeter | None = None) -> None:
        self._request = request
        self._strict_rows = request.strict_rows
        self.buckets = [request.strict_rows] if request.strict_rows else buckets_for(request.rows_max)
        self._code = find_factory(request.code)
        end_group_with_leader()
        self._device = _show_device(request.device)
        # A device that it does not see needs no look. With `auto` the driver knows better than this file what there is.
        is_seen = request.device == "auto" or self._device != "cpu"
        if meter is not None and request.looks_apart and is_seen:
            meter.begin_apart(request.device)
        os.environ.setdefault("OMP_NUM_THREADS", str(request.threads))
        self._process = os.getpid()
        self._policy = self._make(model)
        self.outputs = self._actual_outputs()

    def bind(self, memory: TensorMemory) -> list[Run]:
        """As `Engine.bind`."""
        runs = self._strict_runs(memory) if self._strict_rows else self._bucket_runs(memory)
        return runs[: self._request.rows_max + 1]

    @property
    def keeps_states(self) -> bool:
        """As `Engine.keeps_states`."""
        return False

    def register(self, arena: memoryview) -> bool:
        """Returns False: where the arrays go is the policy's own business."""
        return False

    def idle_run(self) -> Run | None:
        """Returns None: no device is kept warm here."""
        return None

    def describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "version": self._code.version,
            "distribution": self._code.distribution,
            "entry_point": f"{self._code.module}:{self._code.attribute}",
            "device": self._device,
            "threads": self._request.threads,
            "buckets": self.buckets,
            "strict": bool(self._strict_rows),
            **({"fallback": fallback} if (fallback := _fallback(self._request, self._device)) else {}),
        }

    # Making the policy

    def _make(self, model: Model) -> _Policy:
        weights = read_weights(view_of(model))
        try:
            policy: _Policy = self._code.load()(weights, **self._request.code["arguments"])
        except BaseException as error:  # noqa: BLE001 - whatever a package raises, the worker says why
            self._fail("its factory", error, is_logged=True)
        self._end_forked()
        if not callable(policy):
            raise EngineError(f"its factory: expected a policy that can be called, got {type(policy).__name__}")
        return policy

    def _actual_outputs(self) -> list[Tensor]:
        """Runs zeros in the smallest buckets; returns each output and parameter with the shape that a row really has."""
        request = self._request
        given: Sequence[Tensor | State] = [*request.observation, *request.states]
        due: dict[str, Tensor | None] = {tensor.name: tensor for tensor in request.outputs}
        due.update(dict.fromkeys(request.parameters))
        due.update({state.output: Tensor(state.output, state.dtype, state.shape) for state in request.states})
        for rows in self.buckets[:_TRIALS]:
            zeros = {tensor.name: aligned_zeros((rows, *tensor.shape), tensor.dtype) for tensor in given}
            try:
                returned = self._policy({name: _read_only(array) for name, array in zeros.items()})
                # What a parameter is in the first trial, it has to be in the second.
                due = {name: _described(returned, name, rows, tensor) for name, tensor in due.items()}
            except BaseException as error:  # noqa: BLE001 - as in `_make`
                self._fail("its policy", error, is_logged=True)
            self._end_forked()
        made = [tensor.name for tensor in request.outputs] + request.parameters
        return [tensor for name, tensor in due.items() if tensor is not None and name in made]

    # Running it

    def _bucket_runs(self, memory: TensorMemory) -> list[Callable[[], None]]:
        read, written = self._tensors(memory)
        runs: list[Callable[[], None]] = []
        for bucket in self.buckets:
            call = self._call_of(_rows(read, 0, bucket), _rows(written, 0, bucket))
            runs += [call] * (bucket + 1 - len(runs))
        return runs

    def _strict_runs(self, memory: TensorMemory) -> list[Callable[[], None]]:
        step, room = self._strict_rows, self._request.room
        read, written = self._tensors(memory)
        # An answer may depend on the address of its row: kernels process elements one by one up to an aligned one.
        aligned = {name: aligned_zeros((step, *array.shape[1:]), array.dtype) for name, array in read.items()}
        call_of = self._call_of
        pieces = [
            _copied_before(_rows(read, first, step), aligned, call_of(aligned, _rows(written, first, step)))
            for first in range(0, room, step)
        ]
        runs = [_one_after_another(pieces[: number + 1]) for number in range(len(pieces))]
        return [runs[max(0, rows - 1) // step] for rows in range(room + 1)]

    def _tensors(self, memory: TensorMemory) -> tuple[dict[str, Array], dict[str, Array]]:
        """The arrays that a run reads, and those that it writes, by name."""
        read = {tensor.name: array for tensor, array in zip(self._request.observation, memory.inputs)}
        written = dict(memory.outputs)
        for state, (before, after) in zip(self._request.states, memory.states):
            read[state.name] = before
            written[state.output] = after
        return read, written

    def _call_of(self, read: Mapping[str, Array], written: Mapping[str, Array]) -> Callable[[], None]:
        policy = self._policy
        given = {name: _read_only(array) for name, array in read.items()}
        due = [(name, array, array.dtype, array.shape) for name, array in written.items()]

        def run() -> None:
            try:
                # A policy may change its own dict.
                returned = policy(dict(given))
                # Checked before it is copied: numpy would cast the one and repeat the other.
                arrays = [_checked(returned, name, dtype, shape) for name, _, dtype, shape in due]
                # Before anything is written: by now the memory may hold another batch of the worker.
                self._end_forked()
                for (_, target, _, _), array in zip(due, arrays):
                    target[...] = array
            except BaseException as error:  # noqa: BLE001 - only this batch fails
                self._fail("its policy", error)

        return run

    def _fail(self, what: str, error: BaseException, *, is_logged: bool = False) -> NoReturn:
        """Raises what a call of the package raised as an `EngineError`, with the line of the code that raised it."""
        self._end_forked()
        if isinstance(error, EngineError):
            raise error
        if is_logged:
            _log(error)
        text = one_line(error)
        raised = f"{type(error).__name__}: {text}" if text else type(error).__name__
        cure = f": install it for {sys.executable}" if isinstance(error, ModuleNotFoundError) else ""
        raise EngineError(f"{what} raised {raised}{_line_of(error)}{cure}") from None

    def _end_forked(self) -> None:
        """Ends a process that the package forked and that came back from it as if it were the worker."""
        if os.getpid() != self._process:
            os._exit(os.EX_SOFTWARE)


def _show_device(device: str) -> str:
    """Shows the policy only the device that was asked for, before its package is imported; returns where it may compute.

    That is `auto` if it sees every GPU of the host: which of the devices it computes on is the policy's own choice.
    """
    if device == "auto":
        return device if os.path.exists(_NVIDIA) else "cpu"
    index = device.partition(":")[2]
    is_there = bool(index) and os.path.exists(f"/dev/nvidia{index}")
    os.environ["CUDA_VISIBLE_DEVICES"] = index if is_there else ""
    return device if is_there else "cpu"


def _fallback(request: LoadRequest, device: str) -> str:
    """What was asked for and a Python policy does not get; empty if there is nothing."""
    reasons = [f"there is no {request.device}"] if device != request.device != "auto" else []
    if request.precision != "float32":
        reasons.append(f"a Python policy computes in its own precision, not in {request.precision}")
    if request.device_memory_bytes_max:
        reasons.append("nothing bounds the device memory of a Python policy while it serves")
    return "; ".join(reasons)


def _checked(returned: Any, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """An output of a policy, if it is what is due."""
    array = _array(returned, name)
    if array.shape != shape or array.dtype != dtype:
        expected, actual = (f"{each} {list(axes)}" for each, axes in ((dtype, shape), (array.dtype, array.shape)))
        raise EngineError(f"output {name!r}: expected {expected}, got {actual}")
    return array


def _described(returned: Any, name: str, rows: int, due: Tensor | None) -> Tensor:
    """Describes an output of a policy in its first calls; a parameter, of which nothing is due, must be floats."""
    if due is not None:
        _checked(returned, name, np.dtype(due.dtype), (rows, *due.shape))
        return due
    array = _array(returned, name)
    if array.shape[:1] != (rows,) or array.dtype.kind != "f":
        raise EngineError(f"output {name!r}: expected {rows} rows of floats, got {array.dtype} {list(array.shape)}")
    return Tensor(name, str(array.dtype), list(array.shape[1:]))


def _array(returned: Any, name: str) -> Array:
    """An output as an array, without a copy where its library allows it: torch and JAX do, on the CPU."""
    if not isinstance(returned, Mapping):
        raise EngineError(f"its policy: expected a dict of arrays by name, got {type(returned).__name__}")
    if name not in returned:
        raise EngineError(f"its policy returned no {name!r}, but {', '.join(map(str, returned)) or 'nothing'}")
    return np.asarray(returned[name])


def _read_only(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view


def _rows(arrays: Mapping[str, Array], first: int, count: int) -> dict[str, Array]:
    return {name: array[first : first + count] for name, array in arrays.items()}


def _copied_before(source: Mapping[str, Array], to: Mapping[str, Array], run: Callable[[], None]) -> Callable[[], None]:
    copies = [(to[name], array) for name, array in source.items()]

    def copy_and_run() -> None:
        for target, array in copies:
            target[...] = array
        run()

    return copy_and_run


def _one_after_another(runs: Sequence[Callable[[], None]]) -> Callable[[], None]:
    def run_all() -> None:
        for run in runs:
            run()

    return run_all


def _log(error: BaseException) -> None:
    """Writes the whole traceback to the log, for whoever wrote the package."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    # Nobody may be reading the log, and it is no reason to fail.
    with contextlib.suppress(OSError):
        print(text[-TRACEBACK_CHARS_MAX:], file=sys.stderr, flush=True)


def _line_of(error: BaseException) -> str:
    """Where an error was raised, as far as it is known. Empty if the call itself failed: this file is not the package's."""
    frames = traceback.extract_tb(error.__traceback__, limit=-1) if error.__traceback__ else []
    if not frames or frames[0].filename == __file__:
        return ""
    return f" ({os.path.basename(frames[0].filename)}, line {frames[0].lineno})"
