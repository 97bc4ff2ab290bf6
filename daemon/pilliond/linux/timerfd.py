"""Timers in the serving loop's epoll set: timerfd(2), which Python supports from 3.13 on."""

from __future__ import annotations

import ctypes
import os
import struct
from types import TracebackType
from typing import ClassVar, Final, Self

from pilliond.limits import NEVER_NS
from pilliond.linux.epoll import DescriptorSet

_CLOCK_MONOTONIC: Final = 1
_ABSOLUTE: Final = 1
_NON_BLOCKING: Final = os.O_NONBLOCK | os.O_CLOEXEC
_SETTING: Final = struct.Struct("@4l")
_EXPIRATIONS: Final = struct.Struct("@Q")
_NANOSECONDS: Final = 1_000_000_000

_libc = ctypes.CDLL(None, use_errno=True)


def open_timer(period_ns: int) -> int:
    """Returns the descriptor of a timer that becomes readable every `period_ns` from now on; the caller owns it.

    Raises `OSError` if no descriptor is left.
    """
    descriptor = _create()
    period = divmod(period_ns, _NANOSECONDS)
    _libc.timerfd_settime(descriptor, 0, _SETTING.pack(*period, *period), None)
    return descriptor


def _create() -> int:
    descriptor: int = _libc.timerfd_create(_CLOCK_MONOTONIC, _NON_BLOCKING)
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return descriptor


def expirations(descriptor: int) -> int:
    """Returns how often a timer has expired since the last call."""
    try:
        (number,) = _EXPIRATIONS.unpack(os.read(descriptor, _EXPIRATIONS.size))
    except BlockingIOError:
        return 0
    return int(number)


class DeadlineTimer:
    """A context that wakes the loop at a moment that it names. Owns its timer.

    The time-out of epoll_wait(2) counts whole milliseconds, which is too late for a budget of one.
    """

    bursts: ClassVar[bool] = False

    def __init__(self, descriptors: DescriptorSet) -> None:
        self._descriptors = descriptors
        self._descriptor = -1
        self._armed_ns = NEVER_NS

    def set(self, moment_ns: int) -> None:
        """Wakes the loop at `moment_ns` (CLOCK_MONOTONIC); at `NEVER_NS`, or if it is set to that moment, does nothing."""
        if moment_ns in (NEVER_NS, self._armed_ns):
            return
        self._armed_ns = moment_ns
        # A moment of 0 would disarm the timer.
        _libc.timerfd_settime(
            self._descriptor, _ABSOLUTE, _SETTING.pack(0, 0, *divmod(max(1, moment_ns), _NANOSECONDS)), None
        )

    def receive(self) -> None:
        self._armed_ns = NEVER_NS
        expirations(self._descriptor)

    def __enter__(self) -> Self:
        self._descriptor = _create()
        self._descriptors.add(self._descriptor, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._descriptors.remove(self._descriptor)
        os.close(self._descriptor)


class PeriodicTimer:
    """A context with a timer that wakes the loop every `period_ns` between `start` and `stop`. Owns its timer.

    With a time-out per wait the kernel would set a timer for every step, which costs measurable latency across cores.
    """

    bursts: ClassVar[bool] = False

    def __init__(self, descriptors: DescriptorSet, period_ns: int) -> None:
        self.descriptor = -1
        self.has_expired = False
        """Whether it has expired since its last start, as far as `receive` was told."""
        self._descriptors = descriptors
        self._period = divmod(period_ns, _NANOSECONDS)

    def start(self) -> None:
        """Starts the timer, from now on."""
        self.has_expired = False
        _libc.timerfd_settime(self.descriptor, 0, _SETTING.pack(*self._period, *self._period), None)

    def stop(self) -> None:
        """Stops the timer, and forgets that it has expired."""
        _libc.timerfd_settime(self.descriptor, 0, _SETTING.pack(0, 0, 0, 0), None)

    def receive(self) -> None:
        self.has_expired = True
        expirations(self.descriptor)

    def __enter__(self) -> Self:
        self.descriptor = _create()
        self._descriptors.add(self.descriptor, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._descriptors.remove(self.descriptor)
        os.close(self.descriptor)
