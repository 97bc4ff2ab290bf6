"""The progress watch: judges whether the serving process hangs, by its ticks and not by a heartbeat of its own. Pure."""

from __future__ import annotations

from typing import Final

from pilliond.limits import LOOK_MS_MAX, STALLED_MS_MAX, TICK_AGE_MS_MAX
from pilliond.linux.process_activity import Activity, ProcessState

_NS_PER_MS: Final = 1_000_000
_NS_PER_S: Final = 1_000_000_000


def is_late(now_ns: int, ticked_ns: int) -> bool:
    """Whether the last tick is so long ago that acts cannot be said to be answered."""
    return now_ns - ticked_ns > TICK_AGE_MS_MAX * _NS_PER_MS


class ProgressWatch:
    """Adds up the time for which a late process could have ticked and did not; all times are CLOCK_MONOTONIC in ns.

    Rule: what counts is the process's own time. While it is stopped or sleeps, the clock's time counts; while it runs or
    could run, only the CPU time that it got counts, so a process that others starve does not hang. While the kernel makes
    it wait (for a disk, for memory), nothing counts. One look counts for at most `LOOK_MS_MAX`: a watch that was itself
    kept from looking has seen nothing. CLOCK_MONOTONIC stands still while the host is suspended.
    """

    def __init__(self, hang_s_max: float) -> None:
        self.stalled_ns = 0
        """That time, since the process was last on time."""
        self._hang_ns_max = round(hang_s_max * _NS_PER_S)
        self._ticked_ns = 0
        self._looked_ns = 0
        self._cpu_ns: int | None = None

    @property
    def is_stalled(self) -> bool:
        """Whether the process makes no progress, whoever else uses the CPUs."""
        return self.stalled_ns > STALLED_MS_MAX * _NS_PER_MS

    @property
    def is_hung(self) -> bool:
        """Whether it has made none for so long that it must be replaced."""
        return 0 < self._hang_ns_max <= self.stalled_ns

    def clear(self) -> None:
        """Forgets the process: it is not being watched, or it is on time."""
        self.stalled_ns = self._looked_ns = 0
        self._cpu_ns = None

    def look(self, now_ns: int, ticked_ns: int, activity: Activity) -> None:
        """Notes what a late process does now. `ticked_ns` is when it ticked last."""
        if ticked_ns != self._ticked_ns:
            self.clear()
            self._ticked_ns = ticked_ns
        # The first look counts nothing: how the process spent the time before is unknown.
        if self._cpu_ns is not None:
            passed_ns = min(now_ns - self._looked_ns, LOOK_MS_MAX * _NS_PER_MS)
            self.stalled_ns += _own_time_ns(activity, passed_ns, activity.cpu_ns - self._cpu_ns)
        self._looked_ns, self._cpu_ns = now_ns, activity.cpu_ns


def _own_time_ns(activity: Activity, passed_ns: int, cpu_ns: int) -> int:
    """Returns how much of `passed_ns` the process had to itself, given the CPU time that it got."""
    match activity.state:
        case ProcessState.STOPPED | ProcessState.SLEEPING:
            return passed_ns
        case ProcessState.RUNNABLE:
            return min(passed_ns, cpu_ns)
        case ProcessState.BLOCKED | ProcessState.ENDED:
            return 0
