"""The stall probe: how long the serving loop is kept from looking at its descriptors while something disturbs it."""

from __future__ import annotations

import os
import time
from typing import ClassVar, Final

from pilliond.linux.epoll import Poller
from pilliond.linux.timerfd import expirations, open_timer

PERIOD_US: Final = 250
"""How often the loop is woken to look at the clock; only while a version is being loaded."""

_NS_PER_US: Final = 1_000


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
        period_ns = PERIOD_US * _NS_PER_US
        self._descriptor = open_timer(period_ns)
        self.worst_ns = 0
        self._due_ns = time.monotonic_ns() + period_ns
        self._poller.add(self._descriptor, self)

    def receive(self) -> None:
        passed = expirations(self._descriptor)
        if passed:
            self.worst_ns = max(self.worst_ns, time.monotonic_ns() - self._due_ns)
            self._due_ns += passed * PERIOD_US * _NS_PER_US

    def stop(self) -> int:
        """Looks no longer; gives the longest lateness in ns."""
        if self._descriptor >= 0:
            self._poller.remove(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
        return self.worst_ns
