"""What a process does to itself so as not to be in the way: it steps aside, takes short turns, takes so much memory."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
from typing import Final

import psutil

_PR_SET_PDEATHSIG: Final = 1
_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274}
"""The number of the system call; the C library has had it for too short a time."""

_ATTRIBUTES: Final = struct.Struct("=IIQiIQQQ")
"""struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period."""

_BYTES_PER_MB: Final = 1_000_000
_LOWEST: Final = 19


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


def take_short_turns(turn_us: int) -> None:
    """Lets the calling thread run for `turn_us` at a time, where another wants its processor; 0: as long as is usual.

    Linux's own turns of some 3 ms are a pause that a step feels. From Linux 6.12 on a thread may ask for shorter ones
    (sched_setattr(2), `sched_runtime`); an older kernel takes no notice.
    """
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None:
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, turn_us * 1_000, 0, 0)
    ctypes.CDLL(None).syscall(number, 0, attributes, 0)


def limit_memory(memory_mb_max: int) -> None:
    """Bounds the address space of this process; beyond it allocations fail here, and nobody else is short of memory."""
    bytes_max = memory_mb_max * _BYTES_PER_MB
    resource.setrlimit(resource.RLIMIT_AS, (bytes_max, bytes_max))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
