"""Runs a program on a device: copies in, computes and copies out on three streams that events join. Hot path.

    copy in    | batch 1 | batch 2 |  ·  | batch 3 |
    compute              | batch 1 ····· | batch 2 ····· | batch 3 …
    copy out                             | batch 1 |     | batch 2 |

Each memory of batches has tensors of its own on the device, at addresses that never change: a copy in fills them, the compute
of each bucket is one captured graph that reads and writes them, a copy out reads them. So batches of different memories only
meet in the streams, and nothing is written that another batch still reads.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from pillion_worker.errors import EngineError
from pillion_worker.runs.interface import DeviceTimes, PipelinedRun
from pillion_worker.runs.state_table import Numbers
from pillion_worker.tensors import Array
from pillion_worker.torch_engine.device import Device
from pillion_worker.torch_engine.device_states import CarriedRun, DeviceStates
from pillion_worker.torch_engine.program import Call, device_error
from pillion_worker.torch_engine.runner import Binding, mismatch

_NS_PER_MS: Final = 1_000_000
_Key = tuple[str, int, int]
"""A tensor of a piece: whether it is read or written, its position in the program, and the address of its first row."""


_Part = tuple[int, list[torch.Tensor]]
"""Rows of states that lie together: the number of the first in the batch, and a tensor for each state."""


class _Carried(NamedTuple):
    """What a run does more to carry states in a table."""

    staged: list[tuple[Array, Array]]
    copies_in: list[tuple[torch.Tensor, torch.Tensor]]
    gather: Callable[[], None]
    scatter: Callable[[], None]


class DeviceRunner:
    """One device. Its streams live as long as it does; tensors and graphs as long as the runs that use them."""

    def __init__(self, call: Call, device: Device) -> None:
        self.call = call
        self.device = device
        self.copy_in, self.compute, self.copy_out = device.stream(), device.stream(), device.stream()
        self._locked: list[tuple[int, int]] = []
        self._pages: list[memoryview] = []
        self.graphs = 0
        """How many graphs were captured."""

    def register(self, arena: memoryview) -> bool:
        """Registers memory as page-locked; returns whether it is. It must stay mapped as long as the process lives."""
        first = np.frombuffer(arena, np.uint8).ctypes.data
        if not self.device.lock(first, arena.nbytes):
            return False
        self._locked.append((first, first + arena.nbytes))
        return True

    def runs_of(self, runs: Sequence[Sequence[Binding]]) -> list[PipelinedRun]:
        """As `Runner.runs_of`."""
        try:
            return _Memory(self, runs).runs
        except Exception as error:
            raise self.failure(error) from error

    def carried_runs_of(
        self,
        runs: Sequence[Sequence[Binding]],
        of_rows: Sequence[int],
        states: DeviceStates,
        numbers: Sequence[Numbers],
    ) -> list[PipelinedRun]:
        """As `runs_of`, with the states of a batch in a table on the device.

        `of_rows[n]` is the index into `runs` for n rows. `numbers` are those of the rows to read and to write, as in
        `TensorMemory.state_rows`.
        """
        try:
            return _Memory(self, runs).carried(runs, of_rows, states, numbers)
        except Exception as error:
            raise self.failure(error) from error

    def page_locked(self, array: Array) -> Array:
        """The array itself if the device can copy it as it lies, else page-locked memory of its shape, or what there is."""
        first = array.ctypes.data
        if any(start <= first and first + array.nbytes <= end for start, end in self._locked):
            return array
        pages = memoryview(mmap.mmap(-1, max(1, array.nbytes)))
        self.register(pages)
        # What is locked once must never be other memory.
        self._pages.append(pages)
        return np.frombuffer(pages, array.dtype, array.size).reshape(array.shape)

    def failure(self, error: Exception) -> EngineError:
        """The error of a batch, when nothing of it is left on the device.

        Ends the process instead if the device is lost to it: only a new one can get it back.
        """
        try:
            self.device.synchronize()
        except RuntimeError:
            # The worker's end tells the serving process; an exception would only fail this batch, and every later one.
            raise SystemExit(os.EX_UNAVAILABLE) from error
        if isinstance(error, EngineError):
            return error
        if isinstance(error, torch.cuda.OutOfMemoryError):
            self.device.free_cached()
        return device_error(error)


class _Memory:
    """The runs of one memory, and what they share: its tensors on the device and its events.

    Only one of these runs has begun at a time, so nothing here waits for the batch before.
    """

    def __init__(self, runner: DeviceRunner, runs: Sequence[Sequence[Binding]]) -> None:
        self._runner = runner
        device = runner.device
        pieces = {id(piece): piece for run in runs for piece in run}
        largest = _largest(pieces.values())
        self._on_host = {key: runner.page_locked(array) for key, array in largest.items()}
        self._on_device = {
            key: device.zeros(array.shape, torch.from_numpy(array).dtype) for key, array in largest.items()
        }
        self.events = [device.event() for _ in range(6)]
        # The largest graph first: the others find room in its memory.
        by_size = sorted(pieces.items(), key=lambda item: -len(item[1].inputs[0]))
        self._launches = {identity: self._launch_of(piece) for identity, piece in by_size}
        self.runs: list[PipelinedRun] = [self._run_of(run) for run in runs]

    def carried(
        self,
        runs: Sequence[Sequence[Binding]],
        of_rows: Sequence[int],
        states: DeviceStates,
        numbers: Sequence[Numbers],
    ) -> list[PipelinedRun]:
        """As `DeviceRunner.carried_runs_of`."""
        device = self._runner.device
        on_host = [self._runner.page_locked(each) for each in numbers]
        on_device = [device.zeros(each.shape, torch.int64) for each in numbers]

        def run_of(rows: int, index: int) -> PipelinedRun:
            run = runs[index]
            reads, writes = (each[:rows] for each in on_device)
            inputs, outputs = self._states_of(run, rows)
            return CarriedRun(
                self._run_of(
                    run,
                    _Carried(
                        [(host[:rows], each[:rows]) for host, each in zip(on_host, numbers)],
                        [(to[:rows], torch.from_numpy(host[:rows])) for to, host in zip(on_device, on_host)],
                        device.enqueuer(lambda: _each(states.gather, reads, inputs), self._runner.compute),
                        device.enqueuer(lambda: _each(states.scatter, writes, outputs), self._runner.compute),
                    ),
                ),
                self.runs[index],
                states,
                numbers,
                rows,
                self._runner.failure,
            )

        # No rows carry no states.
        return [run_of(rows, index) if rows else self.runs[index] for rows, index in enumerate(of_rows)]

    def _states_of(self, run: Sequence[Binding], rows: int) -> tuple[list[_Part], list[_Part]]:
        """The states before and after of these rows on the device: for each piece its first row, and a tensor per state."""
        inputs, outputs = [], []
        first = 0
        for piece in run:
            count = min(len(piece.inputs[0]), rows - first)
            if count > 0:
                read, written = _read(piece), _written(piece)
                inputs.append((first, [self._device(*read[before])[:count] for before, _ in piece.states]))
                outputs.append((first, [self._device(*written[after])[:count] for _, after in piece.states]))
            first += len(piece.inputs[0])
        return inputs, outputs

    def _run_of(self, run: Sequence[Binding], carried: _Carried | None = None) -> PipelinedRun:
        read = [each for piece in run for each in _read(piece, without_states=carried is not None)]
        written = [each for piece in run for each in _written(piece, without_states=carried is not None)]
        before = _staged((self._host(key, array), array) for key, array in read)
        copies_in = [(self._device(key, array), torch.from_numpy(self._host(key, array))) for key, array in read]
        launches = [self._launches[id(piece)] for piece in run]
        if carried is not None:
            before += _staged(carried.staged)
            copies_in += carried.copies_in
            launches = [carried.gather, *launches, carried.scatter]
        return _DeviceRun(
            self._runner,
            self.events,
            before,
            copies_in,
            launches,
            [(torch.from_numpy(self._host(key, array)), self._device(key, array)) for key, array in written],
            _staged((array, self._host(key, array)) for key, array in written),
        )

    def _launch_of(self, piece: Binding) -> Callable[[], None]:
        """Returns what enqueues the compute of a piece, from its tensors on the device to others there."""
        runner, call = self._runner, self._runner.call
        inputs = tuple(self._device(key, array) for key, array in _read(piece))
        outputs = [
            (position, name, self._device(key, array))
            for (position, name, array), (key, _) in zip(piece.outputs, _written(piece))
        ]

        def step() -> None:
            made = call(*inputs)
            for position, name, target in outputs:
                value = made[position]
                # copy_ would repeat a single row, and convert another dtype.
                if value.shape != target.shape or value.dtype is not target.dtype:
                    raise EngineError(mismatch(name, target, value))
                target.copy_(value)

        launch, is_graph = runner.device.launcher(step, runner.compute)
        runner.graphs += is_graph
        return launch

    def _host(self, key: _Key, array: Array) -> Array:
        whole = self._on_host[key]
        return array if whole.ctypes.data == array.ctypes.data else whole[: len(array)]

    def _device(self, key: _Key, array: Array) -> torch.Tensor:
        return self._on_device[key][: len(array)]


class _DeviceRun(PipelinedRun):
    """The run of some pieces, which all lie in one memory."""

    def __init__(
        self,
        runner: DeviceRunner,
        events: Sequence[Any],
        before: Sequence[tuple[Array, Array]],
        copies_in: Sequence[tuple[torch.Tensor, torch.Tensor]],
        launches: Sequence[Callable[[], None]],
        copies_out: Sequence[tuple[torch.Tensor, torch.Tensor]],
        after: Sequence[tuple[Array, Array]],
    ) -> None:
        self._streams = runner.copy_in, runner.compute, runner.copy_out
        self._events = events
        self._end = events[-1]
        self._before = before
        self._copy_in = runner.device.copier(copies_in, runner.copy_in)
        self._launches = launches
        self._copy_out = runner.device.copier(copies_out, runner.copy_out)
        self._after = after
        self._failure = runner.failure

    def begin(self) -> None:
        """As `PipelinedRun.begin`."""
        copy_in, compute, copy_out = self._streams
        copying_in, copied_in, computing, computed, copying_out, copied_out = self._events
        try:
            for to, source in self._before:
                to[:] = source
            copying_in.record(copy_in)
            self._copy_in()
            copied_in.record(copy_in)
            compute.wait_event(copied_in)
            computing.record(compute)
            for launch in self._launches:
                launch()
            computed.record(compute)
            copy_out.wait_event(computed)
            copying_out.record(copy_out)
            self._copy_out()
            copied_out.record(copy_out)
        except Exception as error:
            raise self._failure(error) from error

    def is_done(self) -> bool:
        """As `PipelinedRun.is_done`."""
        try:
            done: bool = self._end.query()
        except RuntimeError:
            # `finish` says what it is.
            return True
        return done

    def finish(self) -> DeviceTimes:
        """As `PipelinedRun.finish`."""
        copying_in, copied_in, computing, computed, copying_out, copied_out = self._events
        try:
            copied_out.synchronize()
            for to, source in self._after:
                to[:] = source
            return DeviceTimes(_ns(copying_in, copied_in), _ns(computing, computed), _ns(copying_out, copied_out))
        except Exception as error:
            raise self._failure(error) from error


def _ns(begin: Any, end: Any) -> int:
    return int(begin.elapsed_time(end) * _NS_PER_MS)


def _each(act: Callable[[torch.Tensor, list[torch.Tensor]], None], numbers: torch.Tensor, parts: list[_Part]) -> None:
    for first, tensors in parts:
        act(numbers[first : first + len(tensors[0])], tensors)


def _read(piece: Binding, *, without_states: bool = False) -> list[tuple[_Key, Array]]:
    states = {before for before, _ in piece.states} if without_states else set()
    return [
        (("read", position, array.ctypes.data), array)
        for position, array in enumerate(piece.inputs)
        if position not in states
    ]


def _written(piece: Binding, *, without_states: bool = False) -> list[tuple[_Key, Array]]:
    states = {after for _, after in piece.states} if without_states else set()
    return [
        (("written", position, array.ctypes.data), array)
        for index, (position, _, array) in enumerate(piece.outputs)
        if index not in states
    ]


def _largest(pieces: Iterable[Binding]) -> dict[_Key, Array]:
    """Each tensor, with as many rows as the largest piece has that begins there."""
    largest: dict[_Key, Array] = {}
    for piece in pieces:
        for key, array in [*_read(piece), *_written(piece)]:
            if key not in largest or len(array) > len(largest[key]):
                largest[key] = array
    return largest


def _staged(copies: Iterable[tuple[Array, Array]]) -> list[tuple[Array, Array]]:
    """The copies on the host (to, from): none of memory that the device reads as it lies."""
    return [(to, source) for to, source in copies if to.ctypes.data != source.ctypes.data]
