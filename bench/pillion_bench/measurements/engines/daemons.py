"""Daemons whose engine runs inline or in a worker, and the one placement of all these measurements.

The clients are on the serving process's CPUs, and workers on the others: a worker is there to leave that core alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pillion_bench.errors import DaemonStartError
from pillion_bench.limits import ANSWER_S_MAX
from pillion_bench.percentiles import Nanoseconds, nanoseconds
from pillion_bench.process.daemon_process import DaemonProcess
from pillion_bench.process.placement import CpuSet, Placement, cpu_list
from pillion_bench.process.worker import Worker
from pillion_bench.roles.load_driver import LoadOpened, LoadPlan, LoadRequest, LoadResult

INLINE, WORKER, ASLEEP, SPINNING = "inline", "worker", "worker_asleep", "worker_spinning"

WARM_UP_S: Final = 0.2

_NONE: Final[Mapping[str, str]] = {}

_ANY_SPEED: Final = {"PILLION_ENGINE__INLINE_US_MAX": "1000000"}
"""A noisy host must not move a bounded policy into a worker."""


def engine_daemon(
    store: Path,
    policy: str,
    engine: str,
    placement: Placement,
    spin_us: int = 0,
    rows_max: int = 0,
    depth: int = 1,
    cache_rows: int = 0,
    more: Mapping[str, str] = _NONE,
    has_admin: bool = False,
) -> DaemonProcess:
    """Returns a daemon that runs `policy` as `INLINE`, `WORKER`, `ASLEEP` or `SPINNING` says, with `more` settings.

    A `WORKER` has the default settings; one that is `ASLEEP` sleeps as soon as it has no batch. Where it spins, both sides
    of the doorbell poll for `spin_us` before they sleep: the worker and the serving process.
    """
    settings = {**more, "PILLION_ENGINE__PLACEMENT": INLINE if engine == INLINE else WORKER}
    settings |= _cpu_settings(placement)
    if engine == ASLEEP:
        settings["PILLION_ENGINE__SPIN_US"] = "0"
    if engine == SPINNING:
        settings |= {"PILLION_ENGINE__SPIN_US": str(spin_us), "PILLION_SERVING__BUSY_POLL_US": str(spin_us)}
    if depth > 1:
        settings["PILLION_ENGINE__DEPTH"] = str(depth)
    if cache_rows:
        settings["PILLION_ENGINE__CACHE_ROWS_MAX"] = str(cache_rows)
    if rows_max:
        settings["PILLION_LIMITS__ROWS_MAX"] = str(rows_max)
    return DaemonProcess(store, policy, _cpus(placement), "lane", settings, has_admin)


def mixed_daemon(store: Path, inline: str, unbounded: str, placement: Placement) -> DaemonProcess:
    """Returns a daemon of two policies: one that is bounded, and one that is not, which therefore runs in a worker."""
    settings = _ANY_SPEED | _cpu_settings(placement)
    return DaemonProcess(store, inline, _cpus(placement), "lane", settings, others=[unbounded])


def expect_workers(daemon: DaemonProcess, count: int) -> list[int]:
    """Returns the process ids of its workers; raises `DaemonStartError` if there are not `count`."""
    pids = daemon.worker_pids()
    if len(pids) != count:
        raise DaemonStartError(f"expected {count} inference workers, the daemon has {len(pids)}")
    return pids


def act_for(daemon: DaemonProcess, policy: str, cpus: CpuSet | None, seconds: float) -> Nanoseconds:
    """Returns the round trips of one blocking client."""
    (result,) = load_results(daemon, policy, cpus, seconds)
    return nanoseconds(result.latency_ns)


def load_results(
    daemon: DaemonProcess, policy: str, cpus: CpuSet | None, seconds: float, processes: int = 1, rows: int = 1
) -> list[LoadResult]:
    """Returns the results of blocking clients, each a process, that act at once."""
    plan = LoadPlan(daemon.address, policy, "", 1, rows, 1, seed=1)
    clients: list[Worker] = []
    try:
        clients.extend(Worker("load", plan, cpus) for _ in range(processes))
        for client in clients:
            client.receive(LoadOpened, ANSWER_S_MAX)
        request = LoadRequest.after(WARM_UP_S, seconds)
        for client in clients:
            client.send(request)
        return [client.receive(LoadResult, seconds + ANSWER_S_MAX) for client in clients]
    finally:
        for client in clients:
            client.close()


def _cpu_settings(placement: Placement) -> dict[str, str]:
    if placement.server is None or placement.client is None:
        return {}
    return {
        "PILLION_SERVING__CPUS": cpu_list(placement.server),
        "PILLION_ENGINE__WORKER_CPUS": cpu_list(placement.client),
    }


def _cpus(placement: Placement) -> CpuSet | None:
    """A daemon may place its processes only on CPUs that it has itself."""
    return None if placement.server is None or placement.client is None else placement.server | placement.client
