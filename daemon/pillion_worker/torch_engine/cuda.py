"""Runs a program on a CUDA device: for each bucket and memory one CUDA graph of copy-in, compute and copy-out. Hot path.

A run is one launch and one wait. The graph's addresses are static: device tensors that all buckets share, and host memory
that is registered as page-locked. Copies have streams of their own, joined to the computing one by events, also inside the
graph. Where a program cannot be captured, the same steps run one by one.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch

from pillion_worker.buckets import WARM_UP_RUNS
from pillion_worker.errors import EngineError
from pillion_worker.tensors import Array
from pillion_worker.torch_engine.program import Call, first_line
from pillion_worker.torch_engine.runner import Binding, mismatch

_HALVES: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16}

Copies = list[tuple[Any, Any]]
"""(to, from)"""


def prepare(device: str, precision: str, memory_bytes_max: int) -> None:
    """Prepares a device before anything is put on it: the bound of its memory, and how exactly it multiplies."""
    torch.cuda.set_device(device)
    if memory_bytes_max:
        total_bytes = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_bytes_max / total_bytes), device)
    may_round = precision != "float32"
    torch.backends.cuda.matmul.allow_tf32 = may_round
    torch.backends.cudnn.allow_tf32 = may_round


class CudaRunner:
    """One CUDA device. Its streams, graphs and device tensors live as long as it does."""

    def __init__(self, call: Call, device: str, precision: str) -> None:
        self.call = _in_precision(call, precision)
        self._device = torch.device(device)
        self._copy_in = _stream(self._device)
        self._compute = _stream(self._device)
        self._copy_out = _stream(self._device)
        # Graphs of one pool share their memory. They never run at the same time.
        self._pool = torch.cuda.graph_pool_handle()
        self._inputs: dict[tuple[int, tuple[int, ...]], torch.Tensor] = {}
        self._registered: list[tuple[int, int]] = []
        self.graphs = 0
        """How many graphs were captured."""

    def register(self, arena: memoryview) -> bool:
        """Registers memory as page-locked; returns whether CUDA did. It must stay mapped as long as the process lives."""
        first = np.frombuffer(arena, np.uint8).ctypes.data
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        if int(runtime.cudaHostRegister(first, arena.nbytes, 0)) != 0:
            return False
        self._registered.append((first, first + arena.nbytes))
        return True

    def run_of(self, pieces: Sequence[Binding]) -> Callable[[], None]:
        """As `Runner.run_of`."""
        parts = [self._part(piece) for piece in pieces]
        synchronize = self._compute.synchronize

        def run() -> None:
            try:
                for before, launch, after in parts:
                    for to, source in before:
                        to[:] = source
                    launch()
                    synchronize()
                    for to, source in after:
                        to[:] = source
            except Exception as error:
                raise self._failure(error) from error

        return run

    def _part(self, piece: Binding) -> tuple[Copies, Callable[[], None], Copies]:
        """The copies of a piece before and after its launch on the host, which are none in registered memory."""
        before: Copies = []
        after: Copies = []
        to_device, inputs, to_host = [], [], []
        for position, array in enumerate(piece.inputs):
            host = self._page_locked(array)
            if host is not array:
                before.append((host, array))
            inputs.append(self._input(position, array))
            to_device.append((inputs[-1], torch.from_numpy(host)))
        for position, name, array in piece.outputs:
            host = self._page_locked(array)
            if host is not array:
                after.append((array, host))
            to_host.append((position, name, torch.from_numpy(host)))
        return before, self._launch_of(to_device, tuple(inputs), to_host), after

    def _launch_of(
        self, to_device: Copies, inputs: tuple[torch.Tensor, ...], to_host: list[tuple[int, str, torch.Tensor]]
    ) -> Callable[[], None]:
        """Returns the launch of one graph, or the same steps one by one if they cannot be captured."""
        call, copy_in, compute, copy_out = self.call, self._copy_in, self._compute, self._copy_out

        def step() -> None:
            copy_in.wait_stream(compute)
            with torch.cuda.stream(copy_in):
                for to, source in to_device:
                    to.copy_(source, non_blocking=True)
            compute.wait_stream(copy_in)
            made = call(*inputs)
            copy_out.wait_stream(compute)
            with torch.cuda.stream(copy_out):
                for position, name, target in to_host:
                    value = made[position]
                    if value.shape != target.shape or value.dtype is not target.dtype:
                        raise EngineError(mismatch(name, target, value))
                    target.copy_(value, non_blocking=True)
            compute.wait_stream(copy_out)

        def steps() -> None:
            with torch.cuda.stream(compute):
                step()

        try:
            for _ in range(WARM_UP_RUNS):
                steps()
            compute.synchronize()
        except Exception as error:
            raise self._failure(error) from error
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=compute):
                step()
        except RuntimeError:
            # It reads a value back, or its operators cannot be captured.
            return steps
        self.graphs += 1
        replay = graph.replay

        def launch() -> None:
            with torch.cuda.stream(compute):
                replay()

        return launch

    def _input(self, position: int, array: Array) -> torch.Tensor:
        """The device's tensor for an input. All memories share it: their batches run one after the other."""
        key = (position, array.shape)
        if key not in self._inputs:
            self._inputs[key] = torch.from_numpy(array).to(self._device)
        return self._inputs[key]

    def _page_locked(self, array: Array) -> Array:
        """The array itself if it is registered, else page-locked memory of its shape, or what there is."""
        first = array.ctypes.data
        if any(start <= first and first + array.nbytes <= end for start, end in self._registered):
            return array
        pages = memoryview(mmap.mmap(-1, max(1, array.nbytes)))
        self.register(pages)
        return np.frombuffer(pages, array.dtype, array.size).reshape(array.shape)

    def _failure(self, error: Exception) -> EngineError:
        """The error of a batch. Ends the process instead if the device is lost to it: only a new one can get it back."""
        if isinstance(error, EngineError):
            return error
        if isinstance(error, torch.cuda.OutOfMemoryError):
            torch.cuda.empty_cache()
            return EngineError(f"device memory is used up: {first_line(error)}")
        try:
            torch.cuda.synchronize(self._device)
        except RuntimeError:
            # The worker's end tells the serving process; an exception would only fail this batch, and every later one.
            raise SystemExit(os.EX_UNAVAILABLE) from error
        return EngineError(f"torch: {first_line(error)}")


def _stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _in_precision(call: Call, precision: str) -> Call:
    """The program as it computes in that precision; its outputs are float32 again."""
    half = _HALVES.get(precision)
    if half is None:
        return call

    def call_in_half(*inputs: torch.Tensor) -> Sequence[Any]:
        with torch.autocast("cuda", dtype=half):
            made = call(*inputs)
        return [value.float() if getattr(value, "dtype", None) is half else value for value in made]

    return call_in_half
