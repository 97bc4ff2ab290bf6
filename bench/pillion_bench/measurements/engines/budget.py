"""`pillion bench budget`: acts with a budget at a policy that is slow and busy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from pillion_bench.host import describe_host
from pillion_bench.limits import ANSWER_S_MAX, BUDGET_ACT_S_MAX
from pillion_bench.measurements.engines.daemons import WORKER, engine_daemon, expect_workers
from pillion_bench.measurements.engines.neighbour import keeping_busy
from pillion_bench.measurements.engines.policies import POLICY, store_with_looping
from pillion_bench.percentiles import nanoseconds, percentiles_us
from pillion_bench.process.placement import Placement
from pillion_bench.process.worker import Worker
from pillion_bench.roles.budget_driver import BudgetPlan, BudgetResult
from pillion_bench.roles.steady_driver import SteadyResult


class BudgetOptions(msgspec.Struct, frozen=True):
    """The acts, their budget, the pause after each answer, and the run of the policy."""

    acts: int = 2_000
    budget_ms: float = 5.0
    pause_ms: float = 4.0
    run_ms: float = 15.0


def measure_budget(placement: Placement, options: BudgetOptions, advance: Callable[[str], None]) -> dict[str, Any]:
    """Sends all acts while two clients keep the policy's worker busy; returns the report of `pillion bench budget`."""
    advance("make the policy")
    with (
        store_with_looping(options.run_ms, placement.client) as store,
        engine_daemon(store, POLICY, WORKER, placement) as daemon,
        keeping_busy(daemon, placement.client) as busy,
    ):
        expect_workers(daemon, 1)
        plan = BudgetPlan(
            daemon.address, POLICY, options.acts, round(options.budget_ms * 1_000), options.pause_ms / 1_000
        )
        with Worker("budget", plan, placement.server) as client:
            client.receive(str, ANSWER_S_MAX)
            advance(f"{options.acts:,} acts")
            result = client.request("start", BudgetResult, options.acts * BUDGET_ACT_S_MAX + ANSWER_S_MAX)
        others = busy()
    return report(result, others, options, placement)


def report(result: BudgetResult, others: SteadyResult, options: BudgetOptions, placement: Placement) -> dict[str, Any]:
    """Returns the report; `bench/README.md` describes its keys."""
    refusal_ns = nanoseconds(result.refusal_ns)
    busy_ns = nanoseconds(others.received_ns) - nanoseconds(others.sent_ns)
    return {
        "report": "pillion.budget",
        "acts": options.acts,
        "dispatched_late": result.dispatched_late,
        "answered": result.answered,
        "answered_in_time": result.answered - result.answered_late,
        "refused": result.refused,
        "refused_before_the_end": int((refusal_ns < 0).sum()),
        "refusal_us": {"n": len(refusal_ns), **signed_percentiles_us(refusal_ns)},
        "busy": {"acts": len(busy_ns), "refused": others.refused, "round_trip_us": percentiles_us(busy_ns)},
        "budget_ms": options.budget_ms,
        "pause_ms": options.pause_ms,
        "run_ms": options.run_ms,
        "pin": placement.with_worker(),
        "host": describe_host(),
    }


def signed_percentiles_us(values_ns: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, float | None]:
    """Returns p50 and p99 of values that may be negative; None without values."""
    if not len(values_ns):
        return {"p50": None, "p99": None}
    return {
        name: round(float(np.percentile(values_ns, at, method="higher")) / 1_000, 1)
        for name, at in (("p50", 50), ("p99", 99))
    }
