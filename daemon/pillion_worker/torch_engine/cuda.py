"""A CUDA device, as far as only CUDA can do it. What is enqueued when is the business of `pipeline.py`. Hot path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pillion_worker.buckets import WARM_UP_RUNS
from pillion_worker.torch_engine.device import Copies


def why_missing(index: int) -> str:
    """Why there is no such CUDA device; empty if there is one."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    count = torch.cuda.device_count()
    return "" if index < count else f"torch {torch.__version__} finds {count} CUDA devices"


def open_device(device: str, precision: str, memory_bytes_max: int) -> CudaDevice:
    """Prepares `cuda:N` before anything is put on it: the bound of its memory (0: none), and how exactly it multiplies."""
    torch.cuda.set_device(device)
    if memory_bytes_max:
        total_bytes = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_bytes_max / total_bytes), device)
    may_round = precision != "float32"
    torch.backends.cuda.matmul.allow_tf32 = may_round
    torch.backends.cudnn.allow_tf32 = may_round
    return CudaDevice(device)


class CudaDevice:
    """One CUDA device, as `Device`.

    What enqueues something sets torch's current stream first, and leaves it so: to restore it, as a context does, costs more
    than to set it, for each part of each batch.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        # Graphs of one pool share their memory: they all run on one stream, one after the other.
        self._pool = torch.cuda.graph_pool_handle()

    def stream(self) -> Any:
        """As `Device.stream`."""
        return torch.cuda.Stream(self.place)  # type: ignore[no-untyped-call]

    def event(self) -> Any:
        """As `Device.event`."""
        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """As `Device.zeros`."""
        made = torch.zeros(shape, dtype=dtype, device=self.place)
        # It is filled on the current stream, which no other one waits for. So are the weights, before it.
        torch.cuda.current_stream(self.place).synchronize()
        return made

    def lock(self, address: int, size_bytes: int) -> bool:
        """As `Device.lock`."""
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        return int(runtime.cudaHostRegister(address, size_bytes, 0)) == 0

    def copier(self, copies: Copies, stream: Any) -> Callable[[], None]:
        """As `Device.copier`."""

        def enqueue() -> None:
            torch.cuda.set_stream(stream)
            for to, source in copies:
                to.copy_(source, non_blocking=True)

        return enqueue

    def enqueuer(self, step: Callable[[], None], stream: Any) -> Callable[[], None]:
        """As `Device.enqueuer`."""

        def enqueue() -> None:
            torch.cuda.set_stream(stream)
            step()

        return enqueue

    def launcher(self, step: Callable[[], None], stream: Any) -> tuple[Callable[[], None], bool]:
        """As `Device.launcher`."""
        enqueue = self.enqueuer(step, stream)
        for _ in range(WARM_UP_RUNS):
            enqueue()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=stream):
                step()
        except RuntimeError:
            # It reads a value back, or its operators cannot be captured.
            return enqueue, False
        replay = graph.replay

        def launch() -> None:
            torch.cuda.set_stream(stream)
            replay()

        return launch, True

    def synchronize(self) -> None:
        """As `Device.synchronize`."""
        torch.cuda.synchronize(self.place)

    def free_cached(self) -> None:
        """As `Device.free_cached`."""
        torch.cuda.empty_cache()
