"""The schedule of one session's replay: when each act is due, and how late its answer was. It has no clock or socket.

Rule 1: an act is due at the start plus its recorded time divided by the speed, and is never sent earlier.
Rule 2: an act waits for the answer to the one before it, but its latency always counts from its due time. A stall
therefore shows in every act that it delayed (no coordinated omission).
Rule 3: at speed 0 an act is due when it can be sent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pillion_bench.percentiles import Nanoseconds


class ReplaySchedule:
    """The acts of one session, in order: read `due_ns`, call `sent`, then `answered`, and repeat until `is_done`.

    `step_time_ns` and `episode_start` are those of the recording; `start_ns` is the time of the first act.
    """

    def __init__(
        self, step_time_ns: NDArray[np.int64], episode_start: NDArray[np.bool_], start_ns: int, speed: float
    ) -> None:
        self.steps = len(step_time_ns)
        self.step = 0
        self.latency_ns: Nanoseconds = np.zeros(self.steps, np.int64)
        """From the due time of an act to its answer."""
        self.service_ns: Nanoseconds = np.zeros(self.steps, np.int64)
        """From the send time of an act to its answer."""
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
        """The due time of the next act; 0: now."""
        return self._due_ns[self.step] if self._due_ns else 0

    def sent(self, now_ns: int) -> None:
        """Records that the act is being sent."""
        self._sent_ns = now_ns

    def answered(self, now_ns: int, engine_ns: int) -> None:
        """Records the answer to the act and moves on to the next one."""
        step = self.step
        self.service_ns[step] = now_ns - self._sent_ns
        self.latency_ns[step] = now_ns - (self._due_ns[step] if self._due_ns else self._sent_ns)
        self.engine_ns[step] = engine_ns
        self.step = step + 1
