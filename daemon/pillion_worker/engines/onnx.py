"""ONNX Runtime: one session, bound once per bucket of rows to the memory of each batch. Hot path.

A kernel may round the first and last elements of an array differently from those in between: vectorised kernels process
elements one by one up to the next aligned address. Then the answer for a row depends on the number of rows in the run and
on their memory address. With `strict_rows` every run has that many rows, each at an aligned address.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from pillion_worker.arena import ALIGNMENT_BYTES
from pillion_worker.buckets import buckets_for
from pillion_worker.cuda_driver import CudaDriver
from pillion_worker.device_memory.meter import DeviceMeter
from pillion_worker.devices import choose, cuda_index
from pillion_worker.errors import DriverError, EngineError, one_line
from pillion_worker.memory import aligned_zeros, private_memory
from pillion_worker.model_source import Model
from pillion_worker.onnx_engine import graphs
from pillion_worker.onnx_engine.providers import CUDA
from pillion_worker.onnx_engine.sessions import Opened, open_on
from pillion_worker.runs.interface import Run
from pillion_worker.tensors import Array, LoadRequest, State, Tensor, TensorMemory


def load(model: Model, request: LoadRequest, meter: DeviceMeter | None = None) -> OnnxRuntimeEngine:
    """Loads a model. Raises `EngineError` if the graph disagrees with the request."""

    def make(device: str, fallback: str) -> OnnxRuntimeEngine:
        return OnnxRuntimeEngine(model, request, device, fallback)

    engine = choose(request, _missing, make, meter)
    assert isinstance(engine, OnnxRuntimeEngine)
    return engine


def _missing(_: int) -> str:
    """Why the installed ONNX Runtime has no such CUDA device; empty if it may have one."""
    if CUDA in onnxruntime.get_available_providers():
        return ""
    return f"onnxruntime {onnxruntime.__version__} has no {CUDA}"


class OnnxRuntimeEngine:
    """One ONNX policy. Rows that do not fill a shape leave the old contents behind them.

    Raises `EngineError` if the graph disagrees with its card: a model that lies about its shapes never serves.
    """

    kind = "onnxruntime"
    outputs: list[Tensor]
    _session: Any
    _graphs: str

    def __init__(self, model: Model, request: LoadRequest, device: str = "cpu", fallback: str = "") -> None:
        self._request = request
        self._strict_rows = request.strict_rows
        self.buckets = [request.strict_rows] if request.strict_rows else buckets_for(request.rows_max)
        self._names = [tensor.name for tensor in request.observation]
        self._captured: dict[int, _Captured] = {}
        self._use(open_on(model, request, device, fallback))
        if self._graphs == graphs.CAPTURED and (why := self._why_not_captured()):
            # Nothing may be left of the session: a capture that has begun in it forbids allocations.
            self._captured, self._session = {}, None
            gc.collect()
            self._use(open_on(model, request, device, fallback, no_graphs=why))

    def bind(self, memory: TensorMemory) -> list[Run]:
        """As `Engine.bind`."""
        runs = self._strict_runs(memory) if self._strict_rows else self._bucket_runs(memory)
        return runs[: self._request.rows_max + 1]

    @property
    def keeps_states(self) -> bool:
        """As `Engine.keeps_states`."""
        return False

    def register(self, arena: memoryview) -> bool:
        """Registers the arena with the CUDA driver, which then copies from it and to it directly. The CPU reads any memory.

        The outputs of a graph are not copied directly: see `_OnDevice`.
        """
        if self._device == "cpu":
            return False
        address = np.frombuffer(arena, np.uint8).ctypes.data
        try:
            return CudaDriver(cuda_index(self._device)).register(address, arena.nbytes)
        except DriverError:
            # The copies are slower then, as `memory` says: `locked` or `pageable`.
            return False

    def idle_run(self) -> Run | None:
        """Returns None: no device is kept warm here."""
        return None

    def describe(self) -> dict[str, Any]:
        described = {
            "kind": self.kind,
            "version": onnxruntime.__version__,
            "provider": self._session.get_providers()[0],
            "device": self._device,
            "threads": self._request.threads,
            "buckets": self.buckets,
            "strict": bool(self._strict_rows),
        }
        if self._graphs:
            described["graphs"] = self._graphs
        if self._fallback:
            described["fallback"] = self._fallback
        return described

    def _use(self, opened: Opened) -> None:
        self._session, self._device, self._fallback, self._graphs = opened
        _check_inputs(self._session, [*self._names, *(state.name for state in self._request.states)])
        self.outputs = _actual_outputs(self._session, self._request)
        self._scratch = self._make_scratch()

    def _why_not_captured(self) -> str:
        """Captures the graph of each bucket, and returns why one cannot be captured; empty if all are.

        Here, because now there still is a way back: `bind` captures nothing. Batches run one after the other, so those of all
        memories replay the same graphs.
        """
        read, written = self._tensors(private_memory(self._request, self.outputs))
        try:
            for number, rows in enumerate(self.buckets, 1):
                of_rows = _rows_of(read, 0, rows), _rows_of(written, 0, rows)
                self._captured[rows] = _capture(self._session, self._device, number, *of_rows)
        except EngineError as error:
            return str(error)
        return ""

    def _bucket_runs(self, memory: TensorMemory) -> list[Callable[[], None]]:
        runs = [self._run_of([self._piece(memory, 0, rows, {})]) for rows in self.buckets]
        return [runs[self._bucket_index(rows)] for rows in range(self.buckets[-1] + 1)]

    def _strict_runs(self, memory: TensorMemory) -> list[Callable[[], None]]:
        step, room = self._strict_rows, self._request.room
        pieces = [self._piece(memory, first, step, self._scratch) for first in range(0, room, step)]
        runs = [self._run_of(pieces[: number + 1]) for number in range(len(pieces))]
        return [runs[max(0, rows - 1) // step] for rows in range(room + 1)]

    def _bucket_index(self, rows: int) -> int:
        return next(index for index, bucket in enumerate(self.buckets) if bucket >= rows)

    def _piece(self, memory: TensorMemory, first: int, rows: int, scratch: Mapping[str, Array]) -> _Piece:
        read, written = self._tensors(memory)
        return _Piece(
            self._session,
            _rows_of(read, first, rows),
            _rows_of(written, first, rows),
            scratch,
            self._device,
            self._captured.get(rows),
        )

    def _tensors(self, memory: TensorMemory) -> tuple[dict[str, Array], dict[str, Array]]:
        """The arrays that a run reads, and those that it writes, by name."""
        read = dict(zip(self._names, memory.inputs))
        written = dict(memory.outputs)
        for state, (before, after) in zip(self._request.states, memory.states):
            read[state.name] = before
            written[state.output] = after
        return read, written

    def _make_scratch(self) -> dict[str, Array]:
        """Memory at an aligned address for the strict shape of each tensor."""
        request = self._request
        if not self._strict_rows:
            return {}
        shapes = {tensor.name: (tensor.dtype, tensor.shape) for tensor in [*request.observation, *self.outputs]}
        for state in request.states:
            shapes[state.name] = shapes[state.output] = (state.dtype, state.shape)
        return {name: aligned_zeros((self._strict_rows, *shape), dtype) for name, (dtype, shape) in shapes.items()}

    def _run_of(self, pieces: list[_Piece]) -> Callable[[], None]:
        run_session = self._session.run_with_iobinding
        steps = [(piece.before, piece.binding, piece.options, piece.after) for piece in pieces]

        def run() -> None:
            try:
                for before, binding, options, after in steps:
                    for to, source in before:
                        to[:] = source
                    run_session(binding, options)
                    for to, source in after:
                        to[:] = source
            except Exception as error:
                raise EngineError(f"onnxruntime: {type(error).__name__}") from error

        return run


class _Captured(NamedTuple):
    """The CUDA graph of a bucket. It reads and writes these tensors of the device, by name, and nothing else."""

    binding: Any
    options: Any
    tensors: dict[str, _OnDevice]


def _capture(
    session: Any, device: str, number: int, read: Mapping[str, Array], written: Mapping[str, Array]
) -> _Captured:
    """Captures a graph for tensors of these dtypes and shapes. Raises `EngineError`."""
    binding, options, tensors = session.io_binding(), graphs.run_options(number), {}
    for arrays, bind in ((read, binding.bind_ortvalue_input), (written, binding.bind_ortvalue_output)):
        for name, array in arrays.items():
            tensors[name] = _OnDevice(array, device)
            bind(name, tensors[name].value)
    graphs.capture(session, binding, options)
    return _Captured(binding, options, tensors)


class _Piece:
    """Rows that run together: the binding, the options of its runs, and the copies to make `before` and `after` it (to, from).

    `read` and `written` hold the rows of each tensor by name. They are copied to the tensors of `captured`, if there is a graph
    to replay, and from there. Else a tensor at an unaligned address runs in `scratch`, if that has memory for its name;
    otherwise it runs in place.
    """

    __slots__ = ("after", "before", "binding", "options")

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        read: Mapping[str, Array],
        written: Mapping[str, Array],
        scratch: Mapping[str, Array],
        device: str,
        captured: _Captured | None,
    ) -> None:
        self.before: list[tuple[Array | _OnDevice, Array]] = []
        self.after: list[tuple[Array, Any]] = []
        self.options: Any = None
        if captured is not None:
            self.binding, self.options, tensors = captured
            self.before += [(tensors[name], array) for name, array in read.items()]
            self.after += [(array, tensors[name]) for name, array in written.items()]
            return
        self.binding = session.io_binding()
        for name, array in read.items():
            target = _aligned_or_scratch(name, array, scratch)
            if target is not array:
                self.before.append((target, array))
            if device == "cpu":
                self.binding.bind_input(name, "cpu", 0, target.dtype, list(target.shape), target.ctypes.data)
            else:
                on_device = _OnDevice(target, device)
                self.binding.bind_ortvalue_input(name, on_device.value)
                self.before.append((on_device, target))
        for name, array in written.items():
            target = _aligned_or_scratch(name, array, scratch)
            if target is not array:
                self.after.append((array, target))
            self.binding.bind_output(name, "cpu", 0, target.dtype, list(target.shape), target.ctypes.data)


class _OnDevice:
    """A tensor that lives on a device, written to and read as an array is: runs on the CPU pay nothing for it.

    It begins as a copy of `array`. Raises `EngineError` where the device has no memory for it.
    """

    __slots__ = ("value",)

    def __init__(self, array: Array, device: str) -> None:
        try:
            self.value: Any = onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", cuda_index(device))
        except Exception as error:  # noqa: BLE001 - ONNX Runtime raises errors of its own, of many kinds
            raise EngineError(f"onnxruntime: {one_line(error)}") from None

    def __setitem__(self, _: slice, source: Array) -> None:
        self.value.update_inplace(source)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        # A new array. `copy_tensors` could fill one that is there, but only for a provider that is registered as a library with
        # the environment of ONNX Runtime; one that a session names is not, and ONNX Runtime before 1.23 has no such function.
        made: Array = self.value.numpy()
        return made


def _rows_of(arrays: Mapping[str, Array], first: int, rows: int) -> dict[str, Array]:
    return {name: array[first : first + rows] for name, array in arrays.items()}


def _aligned_or_scratch(name: str, array: Array, scratch: Mapping[str, Array]) -> Array:
    return array if array.ctypes.data % ALIGNMENT_BYTES == 0 or name not in scratch else scratch[name]


def _check_inputs(session: onnxruntime.InferenceSession, names: list[str]) -> None:
    offered = sorted(entry.name for entry in session.get_inputs())
    if sorted(names) != offered:
        raise EngineError(f"the graph's inputs are not the card's: expected {sorted(names)}, got {offered}")


def _actual_outputs(session: onnxruntime.InferenceSession, request: LoadRequest) -> list[Tensor]:
    """Runs two rows of zeros, and returns each output and parameter with the shape that a row really has."""
    made = [tensor.name for tensor in request.outputs] + request.parameters
    names = made + [state.output for state in request.states]
    offered = {output.name for output in session.get_outputs()}
    missing = [name for name in names if name not in offered]
    if missing:
        raise EngineError(f"the graph has no output {missing[0]!r}, it has {', '.join(sorted(offered))}")
    given: Sequence[Tensor | State] = [*request.observation, *request.states]
    feed = {tensor.name: np.zeros((2, *tensor.shape), tensor.dtype) for tensor in given}
    try:
        actual = dict(zip(names, session.run(names, feed, graphs.run_options())))
    except Exception as error:  # noqa: BLE001 - as in `run`
        raise EngineError(f"the graph does not run on two rows of its card's shapes: {error}") from None
    for tensor in request.outputs:
        _check_output(tensor.name, tensor.dtype, tensor.shape, actual[tensor.name])
    for name in request.parameters:
        if actual[name].shape[:1] != (2,) or actual[name].dtype.kind != "f":
            raise EngineError(
                f"output {name!r} of two rows: expected floats, got {actual[name].dtype} {actual[name].shape}"
            )
    for state in request.states:
        _check_output(state.output, state.dtype, state.shape, actual[state.output])
    return [Tensor(name, str(actual[name].dtype), list(actual[name].shape[1:])) for name in made]


def _check_output(name: str, dtype: str, shape: Sequence[int], actual: Array) -> None:
    expected = (2, *shape)
    if actual.shape != expected or actual.dtype != np.dtype(dtype):
        raise EngineError(
            f"output {name!r} of two rows: expected {dtype} {list(expected)}, got {actual.dtype} {list(actual.shape)}"
        )
