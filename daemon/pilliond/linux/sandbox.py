"""What a child process does to itself before it works: dies with its parent, lowers its priority, limits its memory."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psutil

from pillion_worker.sandbox import die_with_parent, end_group_with_leader
from pilliond.limits import BACKGROUND_NICENESS

__all__ = [
    "CHILD_ENVIRONMENT",
    "die_with_parent",
    "end_group_with_leader",
    "limit_memory",
    "run_when_idle",
    "step_aside",
    "without_memory_limit",
]

_BYTES_PER_MB: Final = 1_000_000
_LOWEST: Final = 19

CHILD_ENVIRONMENT: Final = {
    # numpy handles one row at a time there: a pool of threads would only take cores away.
    "OPENBLAS_NUM_THREADS": "1",
    # Newer builds of ONNX Runtime send telemetry every ten seconds, from threads of their own.
    "ORT_DISABLE_TELEMETRY": "1",
}
"""The environment of a child that runs ONNX Runtime, added to its parent's."""


def step_aside() -> None:
    """Lowers the priority: a tenth of a CPU that others want, and the disk when no other process wants it.

    Not `SCHED_IDLE`: simulators may use every CPU, and then a version that is staged at that priority never gets ready.
    """
    os.setpriority(os.PRIO_PROCESS, 0, max(BACKGROUND_NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


def run_when_idle(pid: int | None = None) -> None:
    """Lowers the priority of a process, this one or a child, to the lowest: it runs only when no other wants the CPU.

    Any process that wakes up preempts a `SCHED_IDLE` process at once; the highest niceness alone does not achieve that.
    """
    # Each thread has a priority of its own.
    for thread in os.listdir(f"/proc/{pid or 'self'}/task"):
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, int(thread), _LOWEST)
            os.sched_setscheduler(int(thread), os.SCHED_IDLE, os.sched_param(0))


def limit_memory(memory_mb_max: int) -> None:
    """Limits the address space of this process: allocations beyond it fail here, and no other process runs short."""
    bytes_max = memory_mb_max * _BYTES_PER_MB
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (bytes_max, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextmanager
def without_memory_limit() -> Iterator[None]:
    """Lifts that limit, for a child that is started meanwhile and gets another one."""
    limited, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (limited, most))
