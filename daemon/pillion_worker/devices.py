"""Which device an engine computes on: what was asked for, what there is, and what is faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from pillion_worker.buckets import WARM_UP_RUNS, service_buckets
from pillion_worker.device_memory.meter import DeviceMeter
from pillion_worker.engines.interface import Engine
from pillion_worker.errors import EngineError
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


def choose(
    request: LoadRequest,
    missing: Callable[[int], str],
    make: Callable[[str, str], Engine],
    meter: DeviceMeter | None = None,
) -> Engine:
    """Makes the engine on the device that was asked for; `auto` is the faster one for the buckets of the request.

    `missing(N)` says why there is no device `cuda:N`; an empty text: there is one. `make(device, fallback)` makes the
    engine on `cpu` or `cuda:N`; `fallback` is why it is not on the device that was asked for. `meter` begins with the device
    that is tried; if the engine is on the CPU in the end, nothing of the try is left there.
    """
    if request.device == "cpu":
        return make("cpu", "")
    index = cuda_index(request.device)
    if reason := missing(index):
        return make("cpu", "" if request.device == "auto" else f"{request.device} was asked for: {reason}")
    if meter is not None:
        meter.begin_here(index)
    device = f"cuda:{index}"
    engine = _faster(request, make, device) if request.device == "auto" else make(device, "")
    if meter is not None and engine.describe()["device"] == "cpu":
        meter.release()
    return engine


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
