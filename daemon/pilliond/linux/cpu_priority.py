"""Turns: who of the daemon's processes goes first where they share a CPU.

Both measures belong to a thread in Linux, and to the threads and children that it starts later. Neither needs a privilege, and
none is needed to go without: where the kernel, or a filter of system calls, refuses, the daemon serves as before.
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
"""The numbers of sched_setattr(2) and sched_getattr(2), which the C library has no names for."""

_ATTRIBUTES: Final = struct.Struct("=IIQiIQQQ")
"""struct sched_attr, its first version: size, policy, flags, nice, priority, runtime (the slice), deadline, period."""

_NS_PER_US: Final = 1_000
_libc = ctypes.CDLL(None, use_errno=True)


def give_way() -> None:
    """Makes this thread, the control process's first, nicer than the serving process."""
    with contextlib.suppress(PermissionError):
        os.nice(CONTROL_NICENESS)


def request_short_slices() -> None:
    """Asks for slices of `SERVING_SLICE_US`, with which whoever wakes up interrupts a thread that has longer ones.

    Without it a message waits until the turn of whatever else runs on that CPU is over, some milliseconds. Kernels before 6.12
    take no notice. A thread of a real-time policy, as an operator gives it with chrt(1), has no slices, and keeps its policy.
    """
    if os.sched_getscheduler(0) == os.SCHED_OTHER:
        _call(0, _attributes(SERVING_SLICE_US * _NS_PER_US), 0)


def slice_us() -> int | None:
    """How long the turns of this thread are, in microseconds; None where the kernel does not tell."""
    attributes = ctypes.create_string_buffer(_ATTRIBUTES.size)
    if not _call(1, attributes, _ATTRIBUTES.size, 0):
        return None
    slice_ns: int = _ATTRIBUTES.unpack(attributes.raw)[5]
    return slice_ns // _NS_PER_US or None


def _attributes(slice_ns: int) -> ctypes.Array[ctypes.c_char]:
    """Those of a thread of the usual policy, as nice as this one is."""
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    packed = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, niceness, 0, slice_ns, 0, 0)
    return ctypes.create_string_buffer(packed, _ATTRIBUTES.size)


def _call(which: int, attributes: ctypes.Array[ctypes.c_char], *rest: int) -> bool:
    numbers = _CALLS.get(platform.machine())
    return numbers is not None and _libc.syscall(numbers[which], 0, attributes, *rest) == 0
