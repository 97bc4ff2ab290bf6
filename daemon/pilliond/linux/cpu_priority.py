"""CPU priority: which of the daemon's processes runs first where they share a CPU.

Both measures apply to a thread, and to the threads and children that it starts later. Neither needs a privilege. If the
kernel or a system call filter refuses, the daemon serves as before.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
from typing import Final

from pilliond.limits import CONTROL_NICENESS, SERVING_SLICE_US

_CALLS: Final = {"x86_64": (314, 315), "aarch64": (274, 275)}
"""System call numbers of sched_setattr(2) and sched_getattr(2), for which the C library has no functions."""

_ATTRIBUTES: Final = struct.Struct("=IIQiIQQQ")
"""The first version of struct sched_attr: size, policy, flags, nice, priority, runtime (the slice), deadline, period."""

_NS_PER_US: Final = 1_000
_libc = ctypes.CDLL(None, use_errno=True)


def lower_priority() -> None:
    """Gives this thread, the first of the control process, a lower priority than the serving process."""
    with contextlib.suppress(PermissionError):
        os.nice(CONTROL_NICENESS)


def request_short_slices() -> None:
    """Requests time slices of `SERVING_SLICE_US`, so that this thread preempts threads with longer slices when it wakes.

    Without them a message waits some milliseconds until another thread's slice on that CPU ends. Kernels before 6.12
    ignore the request. A thread with a real-time policy, set by chrt(1), has no slices and keeps its policy.
    """
    if os.sched_getscheduler(0) == os.SCHED_OTHER:
        _call(0, _attributes(SERVING_SLICE_US * _NS_PER_US), 0)


def slice_us() -> int | None:
    """The time slice of this thread in microseconds; None if the kernel does not report it."""
    attributes = ctypes.create_string_buffer(_ATTRIBUTES.size)
    if not _call(1, attributes, _ATTRIBUTES.size, 0):
        return None
    slice_ns: int = _ATTRIBUTES.unpack(attributes.raw)[5]
    return slice_ns // _NS_PER_US or None


def _attributes(slice_ns: int) -> ctypes.Array[ctypes.c_char]:
    """The attributes of a thread with the default policy and this thread's niceness."""
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    packed = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, niceness, 0, slice_ns, 0, 0)
    return ctypes.create_string_buffer(packed, _ATTRIBUTES.size)


def _call(which: int, attributes: ctypes.Array[ctypes.c_char], *rest: int) -> bool:
    numbers = _CALLS.get(platform.machine())
    return numbers is not None and _libc.syscall(numbers[which], 0, attributes, *rest) == 0
