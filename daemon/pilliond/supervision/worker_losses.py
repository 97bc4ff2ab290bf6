"""Worker losses: whether and when a lost worker of a version is replaced. Pure."""

from __future__ import annotations

from typing import Final

from pilliond.limits import (
    WORKER_DELAY_S_MAX,
    WORKER_DELAY_S_MIN,
    WORKER_LOSSES_MAX,
    WORKER_SERVING_DELAY_S_MAX,
    WORKER_STEADY_S_MIN,
)

_NS_PER_S: Final = 1_000_000_000


class WorkerLosses:
    """Counts how the workers of one version end; all times are CLOCK_MONOTONIC in ns, passed in.

    Rule 1: the first replacement comes at once; each further pause is twice as long, up to a bound. The bound is low while
    workers complete batches. A worker that served for `WORKER_STEADY_S_MIN` clears the losses before it.
    Rule 2: after `WORKER_LOSSES_MAX` workers in a row that completed no batch, the version is out. It is out at once where
    the model itself is refused: the next worker would refuse it too.
    Rule 3: acts of one session count once until a worker completes a batch. Where there are others, one client takes no version out.
    Rule 4: a worker whose acts run again is replaced at once, and is no reason to take the version out. Half of them ran
    in each worker after it, so there are few such losses until the act that ends workers is alone, and refused.
    Rule 5: a worker that cannot be started because something is short is tried again after a pause, for ever: that says
    nothing of the version.
    """

    def __init__(self) -> None:
        self.losses = 0
        """Losses since a worker last served steadily."""
        self.barren = 0
        """Losses in a row of workers that completed no batch."""
        self._started_ns = 0

    def started(self, now_ns: int) -> None:
        """Notes the start of a worker, or a try."""
        self._started_ns = now_ns

    def short(self, now_ns: int) -> float:
        """Returns the pause in seconds after a worker could not be started because something is short."""
        return max(WORKER_DELAY_S_MIN, self.lost(now_ns, 0, 0, is_repeat=True) or 0.0)

    def lost(
        self, now_ns: int, batches: int, reruns: int, *, is_refused: bool = False, is_repeat: bool = False
    ) -> float | None:
        """Returns the pause in seconds until the next worker starts; None if there is to be none."""
        if batches:
            self.barren = 0
        if reruns:
            return 0.0
        if now_ns - self._started_ns >= WORKER_STEADY_S_MIN * _NS_PER_S:
            self.losses = 0
        self.losses += 1
        self.barren += not batches and not is_repeat
        if is_refused or self.barren >= WORKER_LOSSES_MAX:
            return None
        if self.losses == 1:
            return 0.0
        most_s = WORKER_DELAY_S_MAX if self.barren > 1 else WORKER_SERVING_DELAY_S_MAX
        return float(min(most_s, WORKER_DELAY_S_MIN * 2.0 ** (self.losses - 2)))
