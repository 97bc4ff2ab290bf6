"""Timers in the serving loop's own set (timerfd(2), which Python has no words for before 3.13)."""

from __future__ import annotations

import ctypes
import os
import struct
from types import TracebackType
from typing import ClassVar, Final, Self

from pilliond.linux.epoll import Poller

_CLOCK_MONOTONIC: Final = 1
_NON_BLOCKING: Final = os.O_NONBLOCK | os.O_CLOEXEC
_SETTING: Final = struct.Struct("@4l")
_EXPIRATIONS: Final = struct.Struct("@Q")
_NANOSECONDS: Final = 1_000_000_000

_libc = ctypes.CDLL(None, use_errno=True)


def open_timer(period_ns: int) -> int:
    """The descriptor of a timer that is readable every `period_ns` from now on; the caller owns it.

    Raises `OSError` where there is no descriptor left.
    """
    descriptor: int = _libc.timerfd_create(_CLOCK_MONOTONIC, _NON_BLOCKING)
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    period = divmod(period_ns, _NANOSECONDS)
    _libc.timerfd_settime(descriptor, 0, _SETTING.pack(*period, *period), None)
    return descriptor


def expirations(descriptor: int) -> int:
    """How often a timer has expired since it was last asked; 0: not yet."""
    try:
        (number,) = _EXPIRATIONS.unpack(os.read(descriptor, _EXPIRATIONS.size))
    except BlockingIOError:
        return 0
    return int(number)


class Ticker:
    """Wakes the loop every `period_ns`, while it is entered. Owns its timer.

    A time-out for each wait would have the kernel set its own timer every time, which a step across cores feels.
    """

    bursts: ClassVar[bool] = False

    def __init__(self, poller: Poller, period_ns: int) -> None:
        self._poller = poller
        self._period_ns = period_ns
        self._descriptor = -1

    def receive(self) -> None:
        expirations(self._descriptor)

    def __enter__(self) -> Self:
        self._descriptor = open_timer(self._period_ns)
        self._poller.add(self._descriptor, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._poller.remove(self._descriptor)
        os.close(self._descriptor)
