"""The guardrails: which versions are judged by the bounds of `auto_rollback`, and since when. Plain; the caller passes the time.

Rule: after a switch the stable version is judged for `watch_s`, until it crosses a bound or another version becomes stable. A
rollback is to a version that served before; that one is not judged. Arms are judged for as long as they are arms.
"""

from __future__ import annotations

from collections.abc import Mapping

from pilliond.rollout.live_window import LiveWindow, Reading
from pilliond.rollout.probation import ArmProbation, Fault, Probation
from pilliond.settings.schema import AutoRollbackSettings


class Guardrails:
    """Judges the stable version and the arms by readings of the metrics page. Owns nothing."""

    def __init__(self, bounds: AutoRollbackSettings, window: LiveWindow) -> None:
        self.auto_rollbacks: dict[str, int] = {}
        """How many versions lost their episodes again, by the bound that they crossed."""
        self._bounds = bounds
        self._window = window
        self._stable: Probation | None = None
        self._arms = ArmProbation(bounds)

    def usual_p99_ns(self) -> float | None:
        """Returns the p99 of the live version over the last seconds; None for too few acts."""
        recent = self._window.recent()
        return recent[0].p99_ns() if recent else None

    def watch_stable(self, began: Reading, now_s: float, usual_p99_ns: float | None) -> None:
        """Judges the version that was just switched to. `began` and `usual_p99_ns` are from before the switch."""
        self._stable = Probation(self._bounds, began, now_s, usual_p99_ns) if self._bounds.watch_s else None

    def forget_stable(self) -> None:
        """Judges the stable version no longer."""
        self._stable = None

    def watch_arms(self, began: Mapping[str, Reading], now_s: float) -> None:
        """Judges these arms: a reading of each, by its digest."""
        self._arms.begin(began, now_s, self.usual_p99_ns())

    def stable_fault(self, metrics_index: int, now_s: float) -> Fault | None:
        """Returns the bound that the stable version has crossed, and judges it no longer; None while it keeps all."""
        probation = self._stable
        if probation is None:
            return None
        if probation.is_over(now_s):
            self.forget_stable()
            return None
        fault = probation.fault(self._window.now(metrics_index))
        if fault is not None:
            self.forget_stable()
        return fault

    def arm_fault(self, digest: str, metrics_index: int, now_s: float) -> Fault | None:
        """Returns the bound that an arm has crossed; None while it keeps all."""
        return self._arms.fault(digest, self._window.now(metrics_index), now_s)

    def count(self, fault: Fault) -> None:
        """Counts an automatic rollback."""
        self.auto_rollbacks[fault.bound] = self.auto_rollbacks.get(fault.bound, 0) + 1
