"""What a child process does to itself before it works: dies with its parent, lowers its priority, limits its memory."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from typing import Final

import psutil

from pilliond.limits import BACKGROUND_NICENESS

_PR_SET_PDEATHSIG: Final = 1
_BYTES_PER_MB: Final = 1_000_000
_LOWEST: Final = 19

CHILD_ENVIRONMENT: Final = {
    # numpy handles one row at a time there: a pool of threads would only take cores away.
    "OPENBLAS_NUM_THREADS": "1",
    # Newer builds of ONNX Runtime send telemetry every ten seconds, from threads of their own.
    "ORT_DISABLE_TELEMETRY": "1",
}
"""The environment of a child that runs ONNX Runtime, added to its parent's."""


def die_with_parent(parent_pid: int) -> None:
    """Asks the kernel to end this process when the process `parent_pid`, which started it, ends, however that happens."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        # It had ended before the call: the kernel tells nobody a second time.
        sys.exit(os.EX_TEMPFAIL)


def step_aside() -> None:
    """Lowers the priority: a tenth of a CPU that others want, and the disk when no other process wants it.

    Not `SCHED_IDLE`: simulators may use every CPU, and then a version that is staged at that priority never gets ready.
    """
    os.setpriority(os.PRIO_PROCESS, 0, max(BACKGROUND_NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


def run_when_idle() -> None:
    """Lowers the priority to the lowest: this process runs only when no other wants the CPU.

    Any process that wakes up preempts a `SCHED_IDLE` process at once; the highest niceness alone does not achieve that.
    """
    os.setpriority(os.PRIO_PROCESS, 0, _LOWEST)
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def limit_memory(memory_mb_max: int) -> None:
    """Limits the address space of this process: allocations beyond it fail here, and no other process runs short."""
    bytes_max = memory_mb_max * _BYTES_PER_MB
    resource.setrlimit(resource.RLIMIT_AS, (bytes_max, bytes_max))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
