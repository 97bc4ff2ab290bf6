"""Timers in the serving loop's epoll set: timerfd(2), which Python supports from 3.13 on."""

from __future__ import annotations

import ctypes
import os
import struct
from types import TracebackType
from typing import ClassVar, Final, Self

from pilliond.linux.epoll import DescriptorSet

_CLOCK_MONOTONIC: Final = 1
_NON_BLOCKING: Final = os.O_NONBLOCK | os.O_CLOEXEC
_SETTING: Final = struct.Struct("@4l")
_EXPIRATIONS: Final = struct.Struct("@Q")
_NANOSECONDS: Final = 1_000_000_000

_libc = ctypes.CDLL(None, use_errno=True)


def open_timer(period_ns: int) -> int:
    """Returns the descriptor of a timer that becomes readable every `period_ns` from now on; the caller owns it.

    Raises `OSError` if no descriptor is left.
    """
    descriptor: int = _libc.timerfd_create(_CLOCK_MONOTONIC, _NON_BLOCKING)
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    period = divmod(period_ns, _NANOSECONDS)
    _libc.timerfd_settime(descriptor, 0, _SETTING.pack(*period, *period), None)
    return descriptor


def expirations(descriptor: int) -> int:
    """Returns how often a timer has expired since the last call."""
    try:
        (number,) = _EXPIRATIONS.unpack(os.read(descriptor, _EXPIRATIONS.size))
    except BlockingIOError:
        return 0
    return int(number)


class Ticker:
    """A context that wakes the loop every `period_ns`. Owns its timer.

    With a time-out per wait the kernel would set a timer for every step, which costs measurable latency across cores.
    """

    bursts: ClassVar[bool] = False

    def __init__(self, descriptors: DescriptorSet, period_ns: int) -> None:
        self._descriptors = descriptors
        self._period_ns = period_ns
        self._descriptor = -1

    def receive(self) -> None:
        expirations(self._descriptor)

    def __enter__(self) -> Self:
        self._descriptor = open_timer(self._period_ns)
        self._descriptors.add(self._descriptor, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._descriptors.remove(self._descriptor)
        os.close(self._descriptor)
