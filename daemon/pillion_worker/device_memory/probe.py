"""Reads the free memory of CUDA devices in a process of its own, so that this one finds CUDA untouched.

A process that has started CUDA takes no other `CUDA_VISIBLE_DEVICES`, and its forks cannot use CUDA: code that decides itself
about either would fail after a look from its own process. NVML would need neither, but it numbers the devices otherwise, does
not see the parts of a MIG device as CUDA does, and is missing on Jetson and in some containers.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable

from pillion_worker.cuda_driver import CudaDriver, DeviceMemory, FreeMemory, device_count
from pillion_worker.errors import DriverError


def prepare_probe(device: str) -> Callable[[], FreeMemory]:
    """Forks a process that waits, without CUDA. Call what is returned once: it reads the devices there, and ends it.

    That process sees the devices as this one does now. `device` names the only one; `auto`: all have CUDA's numbers. A device
    that the driver refuses is left out, and there is none if the look fails. Call it while this process has one thread.

    What is free is less by the context of that process, some hundred MB: the driver says nothing without one. So a version that
    would just fit is refused, and none that does not fit is taken for one that does.
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
    identity = os.fstat(ours.fileno())

    def read() -> FreeMemory:
        answer = b""
        if _is_open(ours, identity):
            # A driver may crash its process. Then nothing was read.
            with ours, contextlib.suppress(ConnectionError):
                ours.sendall(b"\0")
                while part := ours.recv(4_096):
                    answer += part
        else:
            ours.detach()
        _end(process)
        try:
            return {name: DeviceMemory(*sizes) for name, sizes in json.loads(answer).items()}
        except ValueError:
            return {}

    return read


def _is_open(end: socket.socket, identity: os.stat_result) -> bool:
    # The policy may have closed every descriptor, and opened others.
    try:
        return os.path.samestat(os.fstat(end.fileno()), identity)
    except OSError:
        return False


def _end(process: int) -> None:
    # The policy may have waited for all children: another process may have the number by now.
    with contextlib.suppress(ChildProcessError):
        if os.waitpid(process, os.WNOHANG) == (0, 0):
            # It has answered, or waits for ever: a fork of the policy keeps the other end open.
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def _read(device: str) -> FreeMemory:
    found: FreeMemory = {}
    with contextlib.suppress(DriverError):
        for index in range(device_count()):
            with contextlib.suppress(DriverError):
                found[f"cuda:{index}" if device == "auto" else device] = CudaDriver(index).memory()
    return found
