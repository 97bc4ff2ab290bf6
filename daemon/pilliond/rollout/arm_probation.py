"""ArmProbation: an arm of a route is on probation for as long as it is one. Plain: it is told the time."""

from __future__ import annotations

from collections.abc import Mapping

from pilliond.rollout.live_window import Reading
from pilliond.rollout.probation import Probation
from pilliond.settings.schema import AutoRollbackSettings


class ArmProbation:
    """The arms that are watched, each by the same bounds as a version that was just switched to.

    Shares and p99 are those of spans of `watch_s`, one after another: what went wrong long ago is forgiven.
    """

    def __init__(self, bounds: AutoRollbackSettings) -> None:
        self._bounds = bounds
        self._usual_p99_ns: float | None = None
        self._of: dict[str, tuple[int, Probation]] = {}
        """For the digest of each arm, how many acts it had answered when it was last looked at, and its probation."""

    def begin(self, began: Mapping[str, Reading], now_s: float, usual_p99_ns: float | None) -> None:
        """These are the arms from now on, with a reading of each; `usual_p99_ns` is that of the stable version."""
        self._usual_p99_ns = usual_p99_ns
        self._of = {digest: (reading.acts, self._probation(reading, now_s)) for digest, reading in began.items()}

    def fault(self, digest: str, now: Reading, now_s: float) -> tuple[str, str] | None:
        """The bound that an arm has crossed, as `Probation.fault` says it; None while it keeps within all."""
        if not self._bounds.watch_s:
            return None
        acts, probation = self._of.get(digest, (0, None))
        if probation is None or now.acts < acts or probation.is_over(now_s):
            # It was an arm before this process was started, or its serving process was, or a span is over.
            probation = self._probation(now, now_s)
        self._of[digest] = (now.acts, probation)
        return probation.fault(now)

    def _probation(self, began: Reading, now_s: float) -> Probation:
        return Probation(self._bounds, began, now_s, self._usual_p99_ns)
