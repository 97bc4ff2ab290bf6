"""The stall probe: how long the serving loop is kept from looking at its descriptors while something disturbs it."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from typing import ClassVar, Final

from pilliond.poller import Poller

PERIOD_US: Final = 250
"""How often the loop is woken to look at the clock; only while a version is being loaded."""

_CLOCK_MONOTONIC: Final = 1
_NON_BLOCKING: Final = os.O_NONBLOCK | os.O_CLOEXEC
_SETTING: Final = struct.Struct("@4l")
_EXPIRATIONS: Final = struct.Struct("@Q")
_NS_PER_US: Final = 1_000

_libc = ctypes.CDLL(None, use_errno=True)


class StallProbe:
    """A timer in the loop's own set (timerfd(2)): whoever is late for it, was late for everybody. Owns its descriptor.

    `worst_ns` is the longest lateness since `start`.
    """

    bursts: ClassVar[bool] = False

    def __init__(self, poller: Poller) -> None:
        self.worst_ns = 0
        self._poller = poller
        self._descriptor = -1
        self._due_ns = 0

    def start(self) -> None:
        """Begins to look; raises `OSError` where there is no descriptor left."""
        descriptor = _libc.timerfd_create(_CLOCK_MONOTONIC, _NON_BLOCKING)
        if descriptor < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        period_ns = PERIOD_US * _NS_PER_US
        _libc.timerfd_settime(descriptor, 0, _SETTING.pack(0, period_ns, 0, period_ns), None)
        self.worst_ns = 0
        self._due_ns = time.monotonic_ns() + period_ns
        self._descriptor = descriptor
        self._poller.add(descriptor, self)

    def receive(self) -> None:
        try:
            (expirations,) = _EXPIRATIONS.unpack(os.read(self._descriptor, _EXPIRATIONS.size))
        except BlockingIOError:
            return
        self.worst_ns = max(self.worst_ns, time.monotonic_ns() - self._due_ns)
        self._due_ns += expirations * PERIOD_US * _NS_PER_US

    def stop(self) -> int:
        """Looks no longer; gives the longest lateness in ns."""
        if self._descriptor >= 0:
            self._poller.remove(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
        return self.worst_ns
