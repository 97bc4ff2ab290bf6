"""What a build depends on beside its model: the device that it was built for."""

from __future__ import annotations

import hashlib
import platform
from typing import Final

from pillion_worker.cuda_driver import CudaDriver
from pillion_worker.devices import cuda_index
from pillion_worker.errors import DriverError, EngineError
from pillion_worker.model_source import Model, view_of

_CPUS: Final = "/proc/cpuinfo"
_OF_A_CPU: Final = ("model name", "flags", "CPU implementer", "CPU part", "Features")
"""What differs between CPUs, as the kernel calls it on x86-64 and on ARM."""


def model_digest(model: Model) -> str:
    """Returns the SHA-256 of a model."""
    return hashlib.sha256(view_of(model)).hexdigest()


def device_key(device: str) -> dict[str, str]:
    """Returns what a build for `cpu` or `cuda:N` depends on there, by name. Raises `EngineError` if that is not known."""
    return cpu_key(_CPUS) if device == "cpu" else gpu_key(cuda_index(device))


def gpu_key(index: int) -> dict[str, str]:
    """As `device_key`: the GPU, what it can compute, and its driver."""
    try:
        driver = CudaDriver(index)
        return {"gpu": driver.name(), "compute": driver.compute_capability(), "driver": driver.driver()}
    except DriverError as error:
        raise EngineError(str(error)) from None


def cpu_key(path: str) -> dict[str, str]:
    """As `device_key`: the CPU, and the digest of its name and its instruction sets. `path` is the kernel's list of CPUs."""
    try:
        with open(path) as file:
            first = file.read().partition("\n\n")[0]
    except OSError as error:
        raise EngineError(f"{path}: {error.strerror}") from None
    said = [line.partition(":") for line in first.splitlines()]
    known = {name.strip(): value.strip() for name, _, value in said if name.strip() in _OF_A_CPU}
    if not known:
        raise EngineError(f"{path} does not say what the CPU is")
    told = "\n".join(f"{name}: {known[name]}" for name in sorted(known))
    return {"cpu": platform.machine(), "cpu_sha256": hashlib.sha256(told.encode()).hexdigest()}
