"""Worker losses: whether and when a lost worker of a version is replaced. Pure."""

from __future__ import annotations

from typing import Final

from pilliond.limits import WORKER_DELAY_S_MAX, WORKER_DELAY_S_MIN, WORKER_LOSSES_MAX, WORKER_STEADY_S_MIN

_NS_PER_S: Final = 1_000_000_000


class WorkerLosses:
    """Counts how the workers of one version end; all times are CLOCK_MONOTONIC in ns, passed in.

    Rule 1: the first replacement comes at once; each further pause is twice as long, up to a bound. A worker that served
    for `WORKER_STEADY_S_MIN` clears the losses before it.
    Rule 2: after `WORKER_LOSSES_MAX` workers in a row that completed no batch, the version is out. It is out at once where
    the model itself is refused: the next worker would refuse it too.
    """

    def __init__(self) -> None:
        self.losses = 0
        """Losses since a worker last served steadily."""
        self.barren = 0
        """Losses in a row of workers that completed no batch."""
        self._started_ns = 0

    def started(self, now_ns: int) -> None:
        """Notes the start of a worker."""
        self._started_ns = now_ns

    def lost(self, now_ns: int, batches: int, is_refused: bool) -> float | None:
        """Returns the pause in seconds until the next worker starts; None if there is to be none."""
        if now_ns - self._started_ns >= WORKER_STEADY_S_MIN * _NS_PER_S:
            self.losses = 0
        self.losses += 1
        self.barren = 0 if batches else self.barren + 1
        if is_refused or self.barren >= WORKER_LOSSES_MAX:
            return None
        if self.losses == 1:
            return 0.0
        return float(min(WORKER_DELAY_S_MAX, WORKER_DELAY_S_MIN * 2.0 ** (self.losses - 2)))
