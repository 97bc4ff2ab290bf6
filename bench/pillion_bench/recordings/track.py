"""One session's way through a recording: which act is due when, and how late its answer was. Pure: no clock, no socket.

Rule 1: an act is due at its recorded time, divided by the speed, after the start of the track; never earlier.
Rule 2: an act whose predecessor is not yet answered when it is due waits for that answer, and its latency counts from
when it was due all the same: a stall is paid for by every act that it delayed (coordinated omission).
Rule 3: at speed 0 an act is due when it can be sent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pillion_bench.percentiles import Nanoseconds


class Track:
    """The acts of one session, in turn: `due_ns`, `sent`, `answered`, and again until `is_done`."""

    def __init__(
        self, step_time_ns: NDArray[np.int64], episode_start: NDArray[np.bool_], start_ns: int, speed: float
    ) -> None:
        self.steps = len(step_time_ns)
        self.step = 0
        self.latency_ns: Nanoseconds = np.zeros(self.steps, np.int64)
        """From when an act was due to its answer."""
        self.service_ns: Nanoseconds = np.zeros(self.steps, np.int64)
        """From when it was sent to its answer."""
        self.engine_ns: Nanoseconds = np.zeros(self.steps, np.int64)
        self._due_ns = [start_ns + int(time_ns / speed) for time_ns in step_time_ns] if speed else []
        self._begins = episode_start.tolist()
        self._sent_ns = 0

    @property
    def is_done(self) -> bool:
        """Whether every act has been answered."""
        return self.step == self.steps

    @property
    def begins(self) -> bool:
        """Whether the next act is the first of an episode."""
        return bool(self._begins[self.step])

    @property
    def due_ns(self) -> int:
        """When the next act is due; 0: at once."""
        return self._due_ns[self.step] if self._due_ns else 0

    def sent(self, now_ns: int) -> None:
        """The act is being sent."""
        self._sent_ns = now_ns

    def answered(self, now_ns: int, engine_ns: int) -> None:
        """The act was answered; the next one is now under consideration."""
        step = self.step
        self.service_ns[step] = now_ns - self._sent_ns
        self.latency_ns[step] = now_ns - (self._due_ns[step] if self._due_ns else self._sent_ns)
        self.engine_ns[step] = engine_ns
        self.step = step + 1
