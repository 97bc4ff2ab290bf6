"""Probation: what a version that was switched to must keep within for a while, or it is taken back. Plain."""

from __future__ import annotations

from pilliond.rollout.live_window import Reading
from pilliond.settings.schema import AutoRollbackSettings


class Probation:
    """The first seconds of a version as the stable one. `began` is a reading at its start; `usual_p99_ns` its predecessor's."""

    def __init__(
        self, bounds: AutoRollbackSettings, began: Reading, began_s: float, usual_p99_ns: float | None
    ) -> None:
        self._bounds = bounds
        self._began = began
        self._until_s = began_s + bounds.watch_s
        self._usual_p99_ns = usual_p99_ns

    def is_over(self, now_s: float) -> bool:
        """Whether it has been watched for long enough."""
        return now_s >= self._until_s

    def fault(self, now: Reading) -> tuple[str, str] | None:
        """The bound that the version has crossed, in a word and in a sentence; None while it keeps within all."""
        actual = now.since(self._began)
        bounds = self._bounds
        asked = actual.acts + actual.failures + actual.late
        if actual.non_finite > bounds.non_finite_max:
            return "non_finite", f"{actual.non_finite} acts were answered with a NaN or an infinity"
        if asked < bounds.acts_min:
            return None
        if actual.failures > bounds.error_share_max * asked:
            return "errors", f"the engine failed in {actual.failures} of {asked} acts"
        if actual.late > bounds.late_share_max * asked:
            return "deadlines", f"{actual.late} of {asked} acts missed their deadline"
        return self._slowness(actual.p99_ns())

    def _slowness(self, p99_ns: float | None) -> tuple[str, str] | None:
        bounds, usual_ns = self._bounds, self._usual_p99_ns
        if p99_ns is None:
            return None
        if bounds.p99_us_max and p99_ns > bounds.p99_us_max * 1_000:
            return "p99", f"p99 is {p99_ns / 1_000:.0f} µs, at most {bounds.p99_us_max:.0f} is allowed"
        if bounds.p99_ratio_max and usual_ns and p99_ns > bounds.p99_ratio_max * usual_ns:
            return "p99", f"p99 is {p99_ns / 1_000:.0f} µs, {p99_ns / usual_ns:.1f} times that of the version before"
        return None
