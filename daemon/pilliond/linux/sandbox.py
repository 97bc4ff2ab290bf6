"""What a child process does to itself before it works: it dies with its parent, steps aside, and takes so much memory."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from typing import Final

import psutil

_PR_SET_PDEATHSIG: Final = 1
_BYTES_PER_MB: Final = 1_000_000
_LOWEST: Final = 19

CHILD_ENVIRONMENT: Final = {
    # numpy there touches a row at a time: a pool of threads for it would only take cores away.
    "OPENBLAS_NUM_THREADS": "1",
    # ONNX Runtime would report to its maker every ten seconds, from threads of its own.
    "ORT_DISABLE_TELEMETRY": "1",
}
"""What a child that runs ONNX Runtime finds in its environment, beside its parent's."""


def die_with_parent() -> None:
    """Asks the kernel to end this process when its parent ends, however that happens."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def step_aside() -> None:
    """Gives way to everybody: the processor and the disk are taken only where nobody else wants them.

    A process of `SCHED_IDLE` is interrupted at once by one that wakes up, which the lowest niceness alone is not.
    """
    os.setpriority(os.PRIO_PROCESS, 0, _LOWEST)
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


def limit_memory(memory_mb_max: int) -> None:
    """Bounds the address space of this process; beyond it allocations fail here, and nobody else is short of memory."""
    bytes_max = memory_mb_max * _BYTES_PER_MB
    resource.setrlimit(resource.RLIMIT_AS, (bytes_max, bytes_max))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
