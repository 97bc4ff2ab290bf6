"""The restart policy: whether and when a serving process that ended is started again. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

from pilliond.limits import (
    RESTART_DELAY_S_MAX,
    RESTART_DELAY_S_MIN,
    RESTART_STEADY_S_MIN,
    RESTARTS_WITH_ALL_MAX,
    RESTARTS_WITHOUT_READY_MAX,
)

_NS_PER_S: Final = 1_000_000_000


class RestartPolicy:
    """Counts how the serving process ends; all times are CLOCK_MONOTONIC in ns, passed in.

    Rule 1: the pause doubles with each failure, and only `RESTART_STEADY_S_MIN` of service clear the failures. A short
    READY clears none.
    Rule 2: after `restarts_max` restarts within `window_s`, or `RESTARTS_WITHOUT_READY_MAX` failed starts in a row, it gives up.
    """

    def __init__(self, restarts_max: int, window_s: float) -> None:
        self.failures = 0
        """Ends since the process last served steadily."""
        self.failed_starts = 0
        """Starts in a row that ended before READY."""
        self.restarts = 0
        self.last_exit_code: int | None = None
        self.restart_at_ns: int | None = None
        """When the next start is due; None while a process runs."""
        self.gave_up = ""
        """Why there is no further restart; empty while there may be one."""
        self._delay_s = RESTART_DELAY_S_MIN
        self._restarts_max = restarts_max
        self._window_s = window_s
        self._restarted_ns: deque[int] = deque()
        self._ready_ns: int | None = None

    @property
    def starts_alone(self) -> bool:
        """Whether the next start leaves out the versions beside the stable one: they may be what fails."""
        return self.failed_starts >= RESTARTS_WITH_ALL_MAX

    def started(self) -> None:
        """Notes the start of a process."""
        self.restart_at_ns = self._ready_ns = None

    def became_ready(self, now_ns: int) -> None:
        """Notes that the process is ready."""
        self._ready_ns = now_ns
        self.failed_starts = 0

    def ended(self, exit_code: int, now_ns: int) -> float:
        """Returns the pause in seconds until the next start. If it gives up, it sets `gave_up` and returns 0."""
        self.last_exit_code = exit_code
        if self._ready_ns is None:
            self.failed_starts += 1
        elif now_ns - self._ready_ns >= RESTART_STEADY_S_MIN * _NS_PER_S:
            self.failures = 0
            self._delay_s = RESTART_DELAY_S_MIN
        self.failures += 1
        self.gave_up = self._why_to_give_up(now_ns)
        if self.gave_up:
            return 0.0
        delay_s, self._delay_s = self._delay_s, min(RESTART_DELAY_S_MAX, 2 * self._delay_s)
        self.restarts += 1
        self._restarted_ns.append(now_ns)
        self.restart_at_ns = now_ns + round(delay_s * _NS_PER_S)
        return delay_s

    def _why_to_give_up(self, now_ns: int) -> str:
        if self.failed_starts >= RESTARTS_WITHOUT_READY_MAX:
            return f"{self.failed_starts} starts in a row failed"
        since_ns = now_ns - round(self._window_s * _NS_PER_S)
        while self._restarted_ns and self._restarted_ns[0] < since_ns:
            self._restarted_ns.popleft()
        if len(self._restarted_ns) >= self._restarts_max:
            return f"it was restarted {len(self._restarted_ns)} times within {self._window_s:g} s"
        return ""
