"""Refusals of the admin port: counted, bounded for each peer, and said in the log now and then.

The bound is on what a refused peer may make this process do and write. It does not keep anybody from guessing: 256 random bits do.
So a request that is let in is never counted here, whatever others from the same address did before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from pilliond.limits import REFUSALS_BURST_MAX, REFUSALS_PER_S, REFUSED_PEERS_MAX

REASONS: Final = (
    "no_token",
    "wrong_token",
    "expired_token",
    "scope",
    "user",
    "host",
    "origin",
    "too_many",
)
"""Why a request was refused: the labels of `pillion_admin_refusals_total`."""

_NANOSECONDS: Final = 1e9


class _Budget:
    """A bucket of refusals, which fills again with time."""

    __slots__ = ("at_ns", "left")

    def __init__(self, at_ns: int) -> None:
        self.left = float(REFUSALS_BURST_MAX)
        self.at_ns = at_ns

    def take(self, now_ns: int) -> float:
        """Takes one; gives how many seconds are to be waited for one where there is none, else 0."""
        filled = (now_ns - self.at_ns) / _NANOSECONDS * REFUSALS_PER_S
        self.left = min(float(REFUSALS_BURST_MAX), self.left + filled)
        self.at_ns = now_ns
        if self.left >= 1.0:
            self.left -= 1.0
            return 0.0
        return (1.0 - self.left) / REFUSALS_PER_S


class Refusals(Collector):
    """Counts for Prometheus, and a budget for each peer, within `REFUSED_PEERS_MAX` of them."""

    def __init__(self, log: Any, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.counts = dict.fromkeys(REASONS, 0)
        self._log = log
        self._clock = clock
        self._budgets: dict[str, _Budget] = {}
        self._log_budget = _Budget(clock())
        self._unlogged = 0

    def __len__(self) -> int:
        """How many peers are remembered."""
        return len(self._budgets)

    def refuse(self, peer: str, reason: str, method: str, path: str) -> int:
        """Counts a request that is refused, and says so in the log where that has not been said too often.

        Gives after how many seconds that peer may try again, where it is to be told nothing but that; else 0.
        """
        now_ns = self._clock()
        # Whose token is too small is known: they are told so each time.
        wait_s = 0 if reason == "scope" else math.ceil(self._budget_of(peer, now_ns).take(now_ns))
        self.counts["too_many" if wait_s else reason] += 1
        self._say(now_ns, peer=peer, reason=reason, method=method, path=path[:200])
        return wait_s

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "pillion_admin_refusals", "Requests that the admin port refused, by why.", labels=["reason"]
        )
        for reason, count in self.counts.items():
            family.add_metric([reason], count)
        yield family

    def _budget_of(self, peer: str, now_ns: int) -> _Budget:
        budget = self._budgets.pop(peer, None) or _Budget(now_ns)
        if len(self._budgets) >= REFUSED_PEERS_MAX:
            del self._budgets[next(iter(self._budgets))]
        # The last one that was refused is the last of the dict.
        self._budgets[peer] = budget
        return budget

    def _say(self, now_ns: int, **what: Any) -> None:
        if self._log_budget.take(now_ns):
            self._unlogged += 1
            return
        self._log.warning("admin_refused", **what, unlogged=self._unlogged)
        self._unlogged = 0
