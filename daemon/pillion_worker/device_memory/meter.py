"""Compares the free memory of devices before a version is loaded with that when it is warm."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from typing import Any

from pillion_worker.cuda_driver import CudaDriver, FreeMemory
from pillion_worker.device_memory.probe import prepare_probe
from pillion_worker.errors import DriverError


class DeviceMeter:
    """Measures what a version takes of its devices: `begin…` before it is put there, and `read` when it is warm.

    The driver says how much of a device is free, and not who has the rest: what other processes take or give back
    meanwhile is counted, too. An engine begins, for it knows which devices it tries. Without that, nothing is measured.
    """

    def __init__(self) -> None:
        self._before: FreeMemory = {}
        self._read: Callable[[], FreeMemory] = dict
        self._driver: CudaDriver | None = None

    def begin_here(self, index: int) -> None:
        """Begins with `cuda:N`, for an engine that computes in this process.

        The context of CUDA is the one that the engine uses, too. It is made here, so that it is not counted.
        """
        try:
            driver = CudaDriver(index)
            before = driver.memory()
        except DriverError:
            # Then it has no such device either, and says so itself.
            return
        name = f"cuda:{index}"
        self._driver, self._before, self._read = driver, {name: before}, lambda: {name: driver.memory()}

    def begin_apart(self, device: str) -> None:
        """Begins with `cuda:N`, or with every device that this process sees for `auto`, without touching CUDA here.

        For code that decides itself what it does with CUDA, and in which process. Its context is counted.
        """
        self._before = prepare_probe(device)()
        if self._before:
            self._read = prepare_probe(device)

    def release(self) -> None:
        """Forgets the device of `begin_here`: the version computes elsewhere. Frees all that the try has left there.

        Nothing may use CUDA in this process any more. What the driver does not free stays counted.
        """
        # CUDA's objects are gone before their context is.
        gc.collect()
        if self._driver is not None:
            with contextlib.suppress(DriverError):
                self._driver.reset()
                self._before = {}

    def read(self) -> list[dict[str, Any]]:
        """Returns what the version takes of each device of which it takes anything, in bytes. Raises `DriverError`."""
        if not self._before:
            return []
        now, measured = self._read(), []
        for name, (free_bytes, total_bytes) in self._before.items():
            used_bytes = free_bytes - now[name].free_bytes if name in now else 0
            if used_bytes > 0:
                sizes = {"used_bytes": used_bytes, "free_bytes": free_bytes, "total_bytes": total_bytes}
                measured.append({"device": name, **sizes})
        return measured
