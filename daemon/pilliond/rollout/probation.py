"""Probation: the bounds that a version must keep for a while once it answers new episodes. Plain; the caller passes the time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pilliond.rollout.live_window import Reading
from pilliond.settings.schema import AutoRollbackSettings


class Fault(NamedTuple):
    """A bound that a version crossed."""

    bound: str
    """`non_finite`, `errors`, `deadlines` or `p99`; or `engine_out`, which is judged without a probation."""
    why: str


class Probation:
    """Judges one version by what it did since `began`, a reading at its start.

    `usual_p99_ns` is that of the version before it; None: not known.
    """

    def __init__(
        self, bounds: AutoRollbackSettings, began: Reading, began_s: float, usual_p99_ns: float | None
    ) -> None:
        self._bounds = bounds
        self._began = began
        self._until_s = began_s + bounds.watch_s
        self._usual_p99_ns = usual_p99_ns

    def is_over(self, now_s: float) -> bool:
        """Returns whether the version was watched for `watch_s`."""
        return now_s >= self._until_s

    def fault(self, now: Reading) -> Fault | None:
        """Returns the bound that the version has crossed; None while it keeps all."""
        actual = now.since(self._began)
        bounds = self._bounds
        asked = actual.acts + actual.failures + actual.late
        if actual.non_finite > bounds.non_finite_max:
            return Fault("non_finite", f"{actual.non_finite} acts were answered with a NaN or an infinity")
        if asked < bounds.acts_min:
            return None
        if actual.failures > bounds.error_share_max * asked:
            return Fault("errors", f"the engine failed in {actual.failures} of {asked} acts")
        if actual.late > bounds.late_share_max * asked:
            return Fault("deadlines", f"{actual.late} of {asked} acts missed their deadline")
        return self._slowness(actual.p99_ns())

    def _slowness(self, p99_ns: float | None) -> Fault | None:
        bounds, usual_ns = self._bounds, self._usual_p99_ns
        if p99_ns is None:
            return None
        if bounds.p99_us_max and p99_ns > bounds.p99_us_max * 1_000:
            return Fault("p99", f"p99 is {p99_ns / 1_000:.0f} µs, at most {bounds.p99_us_max:.0f} is allowed")
        if bounds.p99_ratio_max and usual_ns and p99_ns > bounds.p99_ratio_max * usual_ns:
            times = p99_ns / usual_ns
            return Fault("p99", f"p99 is {p99_ns / 1_000:.0f} µs, {times:.1f} times that of the version before")
        return None


class ArmProbation:
    """Judges every arm of a route for as long as it is one, by the bounds for a version that was just switched to.

    It judges one span of `watch_s` after the other, so that an old fault does not count for ever.
    """

    def __init__(self, bounds: AutoRollbackSettings) -> None:
        self._bounds = bounds
        self._usual_p99_ns: float | None = None
        self._arms: dict[str, tuple[int, Probation]] = {}
        """For the digest of each arm: the acts that it had answered at the last look, and its probation."""

    def begin(self, began: Mapping[str, Reading], now_s: float, usual_p99_ns: float | None) -> None:
        """Begins anew with these arms: a reading of each by its digest. `usual_p99_ns` is that of the stable version."""
        self._usual_p99_ns = usual_p99_ns
        self._arms = {digest: (reading.acts, self._probation(reading, now_s)) for digest, reading in began.items()}

    def fault(self, digest: str, now: Reading, now_s: float) -> Fault | None:
        """Returns the bound that an arm has crossed; None while it keeps all."""
        if not self._bounds.watch_s:
            return None
        acts, probation = self._arms.get(digest, (0, None))
        if probation is None or now.acts < acts or probation.is_over(now_s):
            # The span is over, or the counts began anew: this process or the serving process was restarted.
            probation = self._probation(now, now_s)
        self._arms[digest] = (now.acts, probation)
        return probation.fault(now)

    def _probation(self, began: Reading, now_s: float) -> Probation:
        return Probation(self._bounds, began, now_s, self._usual_p99_ns)
