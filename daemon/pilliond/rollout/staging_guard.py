"""The staging guard: decides whether a staging goes on, pauses or ends, by how the live version does meanwhile. Plain.

Rule 1: staging pauses if, within a second, the live version misses more than twice as many deadlines as before, or its p99
crosses a bound. It continues after a pause of a second in which neither happened.
Rule 2: if the p99 is no better while staging is paused, staging did not cause it: that p99 is the usual one from then on.
Rule 3: staging ends for good if the live version misses too many deadlines, if staging takes too long, or if it was paused for
too long in all.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final

from pilliond.rollout.live_window import Reading
from pilliond.settings.schema import StagingSettings

WINDOW_S: Final = 1.0
"""The span over which the live version is judged, and the shortest pause."""

_NS_PER_US: Final = 1_000


class Pace(Enum):
    """What to do with the staging process."""

    GO = "go"
    PAUSE = "pause"
    GIVE_UP = "give up"


class StagingGuard:
    """Guards one staging.

    `usual` holds the counts of the live version before it and their span in seconds; `began` is a reading at `began_s`.
    """

    def __init__(
        self, bounds: StagingSettings, usual: tuple[Reading, int] | None, began: Reading, began_s: float
    ) -> None:
        self.pace = Pace.GO
        self.pauses = 0
        self.paused_s = 0.0
        self.why = ""
        """Why staging is paused, or has ended."""
        self._bounds = bounds
        self._usual_misses_per_s = usual[0].late / usual[1] if usual else 0.0
        self._usual_p99_ns = usual[0].p99_ns() if usual else None
        self._began = began
        self._began_s = self._looked_s = began_s
        self._paused_at_s = 0.0
        self._readings: deque[tuple[float, Reading]] = deque([(began_s, began)])

    def look(self, now: Reading, now_s: float) -> Pace:
        """Returns what to do, given a reading of the live version. The caller calls it about every tenth of a second."""
        if self.pace is Pace.GIVE_UP:
            return self.pace
        if self.pace is Pace.PAUSE:
            self.paused_s += now_s - self._looked_s
        self._looked_s = now_s
        self._readings.append((now_s, now))
        while len(self._readings) > 2 and self._readings[1][0] <= now_s - WINDOW_S:
            self._readings.popleft()
        if enough := self._enough(now, now_s):
            self.why, self.pace = enough, Pace.GIVE_UP
        else:
            self._judge(now_s)
        return self.pace

    def _judge(self, now_s: float) -> None:
        if self.pace is Pace.GO:
            if trouble := self._trouble(now_s):
                self.why, self.pace = trouble, Pace.PAUSE
                self.pauses += 1
                self._paused_at_s = now_s
        elif now_s - self._paused_at_s >= WINDOW_S:
            self._usual_p99_ns = _greater(self._usual_p99_ns, self._recent().p99_ns())
            if not self._trouble(now_s):
                self.pace = Pace.GO

    def _enough(self, now: Reading, now_s: float) -> str:
        bounds = self._bounds
        passed_s = now_s - self._began_s
        missed = now.since(self._began).late
        if missed > bounds.deadline_misses_max + 2 * self._usual_misses_per_s * passed_s:
            return f"the live version missed {missed} deadlines while this one was staged"
        if passed_s - self.paused_s > bounds.timeout_s:
            return f"it was not staged within {bounds.timeout_s:g} s"
        if self.paused_s > bounds.pause_s_max:
            return f"it was paused for more than {bounds.pause_s_max:g} s, the last time because {self.why}"
        return ""

    def _trouble(self, now_s: float) -> str:
        """Returns what is wrong with the live version, as a sentence; empty if nothing is."""
        recent = self._recent()
        over_s = now_s - self._readings[0][0]
        if recent.late > 2 * self._usual_misses_per_s * over_s:
            return f"the live version missed {recent.late} deadlines within a second"
        p99_ns, usual_ns, ratio_max = recent.p99_ns(), self._usual_p99_ns, self._bounds.p99_ratio_max
        if ratio_max and p99_ns and usual_ns and p99_ns > ratio_max * usual_ns:
            return f"the live version's p99 is {p99_ns / _NS_PER_US:.0f} µs, {p99_ns / usual_ns:.1f} times what it was"
        return ""

    def _recent(self) -> Reading:
        return self._readings[-1][1].since(self._readings[0][1])


def _greater(one: float | None, other: float | None) -> float | None:
    return max((number for number in (one, other) if number is not None), default=None)
