"""Refusals of the admin port: counted, limited for each peer, and logged now and then.

The limit bounds the work and the log lines that a refused peer can cause. It is no protection against guessing: the 256
random bits of a token are. A request with access is therefore never counted, whatever its address did before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from pilliond.limits import ADMIN_DETAIL_CHARACTERS_MAX, REFUSALS_BURST_MAX, REFUSALS_PER_S, REFUSED_PEERS_MAX

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
"""The reasons of a refusal: the labels of `pillion_admin_refusals_total`."""

_NANOSECONDS: Final = 1e9


class _Budget:
    """A token bucket of refusals."""

    __slots__ = ("at_ns", "left")

    def __init__(self, at_ns: int) -> None:
        self.left = float(REFUSALS_BURST_MAX)
        self.at_ns = at_ns

    def take(self, now_ns: int) -> float:
        """Takes one and returns 0; returns the seconds until the next one if there is none."""
        filled = (now_ns - self.at_ns) / _NANOSECONDS * REFUSALS_PER_S
        self.left = min(float(REFUSALS_BURST_MAX), self.left + filled)
        self.at_ns = now_ns
        if self.left >= 1.0:
            self.left -= 1.0
            return 0.0
        return (1.0 - self.left) / REFUSALS_PER_S


class Refusals(Collector):
    """Counts for Prometheus, and a budget for each of at most `REFUSED_PEERS_MAX` peers."""

    def __init__(self, log: Any, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.counts = dict.fromkeys(REASONS, 0)
        self._log = log
        self._clock = clock
        self._budgets: dict[str, _Budget] = {}
        self._log_budget = _Budget(clock())
        self._unlogged = 0

    def __len__(self) -> int:
        """Returns how many peers are remembered."""
        return len(self._budgets)

    def refuse(self, peer: str, reason: str, method: str, path: str) -> int:
        """Counts a refused request, and logs it unless there are too many.

        Returns the seconds after which the peer may try again if its budget is spent, else 0.
        """
        now_ns = self._clock()
        # The holder of a token with too small a scope is known, and always gets the reason.
        wait_s = 0 if reason == "scope" else math.ceil(self._budget_of(peer, now_ns).take(now_ns))
        self.counts["too_many" if wait_s else reason] += 1
        self._log_refusal(now_ns, peer=peer, reason=reason, method=method, path=path[:ADMIN_DETAIL_CHARACTERS_MAX])
        return wait_s

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "pillion_admin_refusals", "Requests that the admin port refused, by reason.", labels=["reason"]
        )
        for reason, count in self.counts.items():
            family.add_metric([reason], count)
        yield family

    def _budget_of(self, peer: str, now_ns: int) -> _Budget:
        budget = self._budgets.pop(peer, None) or _Budget(now_ns)
        if len(self._budgets) >= REFUSED_PEERS_MAX:
            del self._budgets[next(iter(self._budgets))]
        # Inserted anew, so that the peer refused longest ago is the first of the dict.
        self._budgets[peer] = budget
        return budget

    def _log_refusal(self, now_ns: int, **fields: Any) -> None:
        if self._log_budget.take(now_ns):
            self._unlogged += 1
            return
        self._log.warning("admin_refused", **fields, unlogged=self._unlogged)
        self._unlogged = 0
