"""The stall probe: measures how long the serving loop is kept from running while something disturbs it."""

from __future__ import annotations

import os
import time
from typing import ClassVar, Final

from pilliond.linux.epoll import DescriptorSet
from pilliond.linux.timerfd import expirations, open_timer

PERIOD_US: Final = 250
"""How often the timer wakes the loop, while a version is loading."""

_NS_PER_US: Final = 1_000


class StallProbe:
    """A timer in the loop's epoll set: when the loop is late for the timer, it was late for every client.

    Owns its descriptor. `worst_ns` is the longest lateness since `start`.
    """

    bursts: ClassVar[bool] = False

    def __init__(self, descriptors: DescriptorSet) -> None:
        self.worst_ns = 0
        self._descriptors = descriptors
        self._descriptor = -1
        self._due_ns = 0

    def start(self) -> None:
        """Starts the timer; raises `OSError` if no descriptor is left."""
        period_ns = PERIOD_US * _NS_PER_US
        self._descriptor = open_timer(period_ns)
        self.worst_ns = 0
        self._due_ns = time.monotonic_ns() + period_ns
        self._descriptors.add(self._descriptor, self)

    def receive(self) -> None:
        passed = expirations(self._descriptor)
        if passed:
            self.worst_ns = max(self.worst_ns, time.monotonic_ns() - self._due_ns)
            self._due_ns += passed * PERIOD_US * _NS_PER_US

    def stop(self) -> int:
        """Stops the timer; returns the longest lateness in ns."""
        if self._descriptor >= 0:
            self._descriptors.remove(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
        return self.worst_ns
