"""Reads the free memory of CUDA devices in a process of its own, so that this one finds CUDA untouched.

A process that has started CUDA takes no other `CUDA_VISIBLE_DEVICES`, and its forks cannot use CUDA: code that decides itself
about either would fail after a look from its own process. NVML would need neither, but it numbers the devices otherwise, does
not see the parts of a MIG device as CUDA does, and is missing on Jetson and in some containers.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable

from pillion_worker.cuda_driver import CudaDriver, DeviceMemory, FreeMemory, device_count
from pillion_worker.errors import DriverError


def prepare_probe(device: str) -> Callable[[], FreeMemory]:
    """Forks a process that waits, without CUDA. Call what is returned once: it reads the devices there, and ends it.

    That process sees the devices as this one does now. `device` names the only one; `auto`: all have CUDA's numbers. A device
    that the driver refuses is left out. Call it while this process has one thread.
    """
    ours, theirs = socket.socketpair()
    process = os.fork()
    if process == 0:
        try:
            ours.close()
            # Empty where the worker has ended.
            if theirs.recv(1):
                theirs.sendall(json.dumps(_read(device)).encode())
        finally:
            os._exit(os.EX_OK)
    theirs.close()

    def read() -> FreeMemory:
        answer = b""
        # A driver may crash its process. Then nothing was read.
        with ours, contextlib.suppress(ConnectionError):
            ours.sendall(b"\0")
            while part := ours.recv(4_096):
                answer += part
        # The policy may have waited for all children.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process, 0)
        return {name: DeviceMemory(*sizes) for name, sizes in json.loads(answer or b"{}").items()}

    return read


def _read(device: str) -> FreeMemory:
    found: FreeMemory = {}
    with contextlib.suppress(DriverError):
        for index in range(device_count()):
            with contextlib.suppress(DriverError):
                found[f"cuda:{index}" if device == "auto" else device] = CudaDriver(index).memory()
    return found
