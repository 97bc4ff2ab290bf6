"""A worker killed under load: how long its version is away, and whether another policy notices."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec
import numpy as np

from pillion_bench.limits import ANSWER_S_MAX
from pillion_bench.measurements.engines.daemons import expect_workers, mixed_daemon
from pillion_bench.measurements.engines.policies import POLICY as LOOPING
from pillion_bench.measurements.engines.policies import store_with_looping
from pillion_bench.percentiles import Nanoseconds, nanoseconds, percentiles_us
from pillion_bench.process.placement import Placement
from pillion_bench.process.worker import Worker
from pillion_bench.roles.steady_driver import SteadyPlan, SteadyResult

POLICY: Final = "lunar-lander"
"""The other policy, inline."""

CLIENTS: Final = 8

_NS: Final = 1_000_000_000
_POLL_S: Final = 0.0002


class Kill(msgspec.Struct, frozen=True):
    """One kill, and what the clients of both policies saw. Times are on CLOCK_MONOTONIC."""

    killed_ns: int
    gone_ns: int
    """When the process had ended."""
    version: SteadyResult
    other: SteadyResult

    def first_action_ns(self) -> int | None:
        """Returns the time from the kill to the first action of a batch after it; None if there was none."""
        late_ns = nanoseconds(self.version.received_ns)[nanoseconds(self.version.dispatched_ns) > self.gone_ns]
        return int(late_ns.min()) - self.killed_ns if len(late_ns) else None

    def other_ns(self, from_ns: int, until_ns: int) -> Nanoseconds:
        """Returns the round trips of the other policy's acts that were answered between the two times."""
        received_ns = nanoseconds(self.other.received_ns)
        taken_ns = received_ns - nanoseconds(self.other.sent_ns)
        return taken_ns[(received_ns >= from_ns) & (received_ns < until_ns)]


def measure_kills(placement: Placement, kills: int, before_s: float, advance: Callable[[str], None]) -> dict[str, Any]:
    """Kills the worker of `kills` daemons, one after the other."""
    done = []
    with store_with_looping(0.0, placement.client) as store:
        for number in range(1, kills + 1):
            advance(f"kill {number}")
            done.append(_kill(store, placement, before_s))
    return report_kills(done, before_s)


def _kill(store: Path, placement: Placement, before_s: float) -> Kill:
    with (
        mixed_daemon(store, POLICY, LOOPING, placement) as daemon,
        Worker("steady", SteadyPlan(daemon.address, LOOPING, CLIENTS), placement.server) as version,
        Worker("steady", SteadyPlan(daemon.address, POLICY, 1), placement.server) as other,
    ):
        for clients in (version, other):
            clients.receive(str, ANSWER_S_MAX)
        time.sleep(before_s)
        (pid,) = expect_workers(daemon, 1)
        killed_ns = time.monotonic_ns()
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
            time.sleep(_POLL_S)
        gone_ns = time.monotonic_ns()
        time.sleep(max(1.0, before_s))
        results = [clients.request("stop", SteadyResult, ANSWER_S_MAX) for clients in (version, other)]
    return Kill(killed_ns, gone_ns, *results)


def report_kills(kills: list[Kill], before_s: float) -> dict[str, Any]:
    """Returns the figures of all kills."""
    first_ms = [None if (taken := kill.first_action_ns()) is None else round(taken / 1e6, 1) for kill in kills]
    before_ns = np.concatenate([kill.other_ns(kill.killed_ns - int(before_s * _NS), kill.killed_ns) for kill in kills])
    during_ns = np.concatenate(
        [kill.other_ns(kill.killed_ns, kill.killed_ns + (kill.first_action_ns() or _NS)) for kill in kills]
    )
    return {
        "clients": CLIENTS,
        "kills": len(kills),
        "acts": sum(len(nanoseconds(kill.version.received_ns)) for kill in kills),
        "refused": _sum_refused([kill.version for kill in kills]),
        "first_action_ms": first_ms,
        "first_action_ms_median": median([taken for taken in first_ms if taken is not None] or [0.0]),
        "other_policy": POLICY,
        "other_acts": sum(len(nanoseconds(kill.other.received_ns)) for kill in kills),
        "other_refused": _sum_refused([kill.other for kill in kills]),
        "other_before_us": {"n": len(before_ns), **percentiles_us(before_ns)},
        "other_while_away_us": {"n": len(during_ns), **percentiles_us(during_ns)},
    }


def _sum_refused(results: list[SteadyResult]) -> dict[str, int]:
    codes = sorted({code for result in results for code in result.refused})
    return {code: sum(result.refused.get(code, 0) for result in results) for code in codes}
