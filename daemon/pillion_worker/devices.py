"""Which device an engine computes on: what was asked for, what there is, and what is faster. And what it takes there."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from pillion_worker.buckets import WARM_UP_RUNS, service_buckets
from pillion_worker.cuda_driver import CudaDriver
from pillion_worker.engines.interface import Engine
from pillion_worker.errors import DriverError, EngineError
from pillion_worker.memory import private_memory
from pillion_worker.tensors import LoadRequest

_TRIAL_RUNS: Final = 20
"""Runs of a bucket that devices are compared by: their median is off by less than devices differ."""


def cuda_index(device: str) -> int:
    """The number of the CUDA device that a request names; 0 for `auto`. Raises `EngineError` for any other text."""
    if device in ("auto", "cuda"):
        return 0
    name, _, number = device.partition(":")
    if name != "cuda" or not (number.isascii() and number.isdigit()):
        raise EngineError(f"device: expected auto, cpu or cuda:N, got {device!r}")
    return int(number)


def choose(request: LoadRequest, missing: Callable[[int], str], make: Callable[[str, str], Engine]) -> Engine:
    """Makes the engine on the device that was asked for; `auto` is the faster one for the buckets of the request.

    `missing(N)` says why there is no device `cuda:N`; an empty text: there is one. `make(device, fallback)` makes the
    engine on `cpu` or `cuda:N`; `fallback` is why it is not on the device that was asked for.
    """
    if request.device == "cpu":
        return make("cpu", "")
    index = cuda_index(request.device)
    reason = missing(index)
    if request.device == "auto":
        return make("cpu", "") if reason else _faster(request, make, f"cuda:{index}")
    return make("cpu", f"{request.device} was asked for: {reason}") if reason else make(f"cuda:{index}", "")


class DeviceMeter:
    """Measures what a version takes of the device `cuda:N`: make one before it is loaded, and read it when it is warm.

    The device's free memory is compared, which other processes change too. The context of CUDA itself, some hundred MB for
    each process, is not counted. With `auto` nothing is measured, for that takes a context, and perhaps nobody else needs
    one. A Python policy is not measured either: it decides itself which devices it sees.
    """

    def __init__(self, request: LoadRequest) -> None:
        self._driver: CudaDriver | None = None
        if request.device in ("auto", "cpu") or request.engine == "python":
            return
        try:
            self._driver = CudaDriver(cuda_index(request.device))
            self._before = self._driver.memory()
        except DriverError:
            # Then it has no such device either, and says so itself.
            self._driver = None

    def read(self, device: str) -> dict[str, int] | None:
        """Returns what a version that computes on this device takes of it, in bytes; None if it is none that was measured."""
        if self._driver is None or device == "cpu":
            return None
        free_bytes, total_bytes = self._before
        used_bytes = max(0, free_bytes - self._driver.memory().free_bytes)
        return {"used_bytes": used_bytes, "free_bytes": free_bytes, "total_bytes": total_bytes}


def _faster(request: LoadRequest, make: Callable[[str, str], Engine], device: str) -> Engine:
    on_cpu = make("cpu", "")
    try:
        on_device = make(device, "")
        is_faster = on_device.describe()["device"] == device and _total_ns(on_device, request) < _total_ns(
            on_cpu, request
        )
    except EngineError as error:
        return make("cpu", f"{device} fails: {error}")
    return on_device if is_faster else on_cpu


def _total_ns(engine: Engine, request: LoadRequest) -> int:
    """The sum of what a run of each bucket takes."""
    runs = engine.bind(private_memory(request, engine.outputs))
    total_ns = 0
    for rows in service_buckets(request.rows_max, request.strict_rows):
        run = runs[min(rows, request.rows_max)]
        for _ in range(WARM_UP_RUNS):
            run()
        taken = []
        for _ in range(_TRIAL_RUNS):
            began_ns = time.monotonic_ns()
            run()
            taken.append(time.monotonic_ns() - began_ns)
        total_ns += sorted(taken)[len(taken) // 2]
    return total_ns
