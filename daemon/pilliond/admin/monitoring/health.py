"""`GET /health`: the state of the daemon and its processes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import psutil

from pilliond.ipc import metrics_page as page
from pilliond.ipc.metrics_page import Phase
from pilliond.policy_rollout import PolicyRollout
from pilliond.rollout.shadow_rollout import Shadows
from pilliond.supervision.supervisor import Supervisor
from pilliond.supervision.watchdog import Watchdog
from pilliond.supervision.worker_status import EngineStatus, engine_status

_MS: Final = 1e6
_S: Final = 1e9
_NOT_SAID: Final = {"version": "", "provider": "", "threads": 1, "device": "", "graphs": "", "fallback": ""}
"""What an engine need not say of itself."""


class LoopLag(msgspec.Struct, frozen=True):
    """How late the serving loop ran its ticks, in milliseconds."""

    last: float
    max: float
    tick_age: float | None
    """Time since its last tick; None if it is not ready."""


class BusyPoll(msgspec.Struct, frozen=True):
    """Whether the serving process polls for messages without sleeping."""

    us: int
    spinning: bool
    spun_s: float


class GcPauses(msgspec.Struct, frozen=True):
    """Garbage collections in the serving process."""

    count: int
    total_ms: float
    max_ms: float


class EngineInfo(msgspec.Struct, frozen=True):
    """The engine that runs the policy."""

    kind: str
    version: str
    """That of the package that runs the model."""
    provider: str
    """The execution provider of ONNX Runtime; empty for other engines."""
    threads: int
    buckets: list[int]
    """Batch sizes for which it is warm, in rows."""
    strict: bool
    """Whether every batch runs in one shape."""
    device: str
    """Where it computes, `cpu` or `cuda:N`."""
    graphs: str
    """Whether ONNX Runtime replays CUDA graphs: `captured`, or `none: ` and why; empty where there is no GPU, and for other
    engines.
    """
    fallback: str
    """What the settings ask for and the engine does not do, and why; empty if there is nothing."""


class ServingProcess(msgspec.Struct, frozen=True):
    """The process that answers acts. The fields after `resident_bytes` are present while it is ready."""

    pid: int | None
    state: str
    """`starting`, `serving`, `unresponsive`, `waiting` (for the next start), `draining` or `failed`."""
    reason: str
    """The state in words; `ready` if acts are answered."""
    starts: int
    failures: int
    """How often it ended since it last served steadily; the pause before the next start doubles with each."""
    last_exit_code: int | None
    """How it ended last; a negative number is the signal that killed it. None: it never ended."""
    restart_in_s: float | None
    """Time until the next start; None if none is due."""
    stalls: int
    """How often it made no progress for a while."""
    hangs: int
    """How often it was killed because it made no progress."""
    resident_bytes: int
    cpus: list[int] | msgspec.UnsetType = msgspec.UNSET
    niceness: int | msgspec.UnsetType = msgspec.UNSET
    slice_us: int | msgspec.UnsetType | None = msgspec.UNSET
    """Its time slice on a shared CPU; None if the kernel does not report it."""
    switch_interval_us: int | msgspec.UnsetType = msgspec.UNSET
    gc_frozen_objects: int | msgspec.UnsetType = msgspec.UNSET


class ControlProcess(msgspec.Struct, frozen=True):
    """The process that answers this request."""

    pid: int
    resident_bytes: int


class PolicyHealth(msgspec.Struct, frozen=True):
    """One served policy."""

    policy: str
    version: str
    digest: str
    sessions: int
    episodes: int
    engine: EngineInfo | None
    """That of the stable version; None while the serving process is not ready."""
    versions: list[EngineStatus]
    """Every loaded version: where it runs and why, and the state of its worker."""
    shadow: ShadowHealth | None


class ShadowHealth(msgspec.Struct, frozen=True):
    """The running shadow, or the last one and why it ended."""

    version: str
    state: str
    waiting_bytes: int
    """Rows that it has not compared yet, in bytes."""
    pid: int | None
    end_reason: str


class Health(msgspec.Struct, frozen=True):
    """The current state of the daemon. `policy`, `version`, `digest`, `shadow` and `engine` are those of the default policy."""

    phase: str
    policy: str
    version: str
    digest: str
    sessions: int
    episodes: int
    queue_rows: int
    loop_lag_ms: LoopLag
    busy_poll: BusyPoll
    gc_pauses: GcPauses
    shadow: ShadowHealth | None
    engine: EngineInfo | None
    policies: list[PolicyHealth]
    """Every served policy, the default one first."""
    uptime_s: float
    ready_s: float | None
    serving: ServingProcess
    control: ControlProcess


def health_of(
    supervisor: Supervisor, policies: Mapping[str, PolicyRollout], watchdog: Watchdog, started_ns: int
) -> Health:
    """Returns the state of the daemon, which started at `started_ns` on CLOCK_MONOTONIC."""
    cells = supervisor.page.cells
    each = [_policy(supervisor, policy) for policy in policies.values()]
    default = each[0]
    now_ns = time.monotonic_ns()
    is_ready = supervisor.phase is Phase.READY
    return Health(
        phase=supervisor.phase.name.lower(),
        policy=default.policy,
        version=default.version,
        digest=default.digest,
        sessions=cells[page.SESSIONS],
        episodes=cells[page.EPISODES],
        queue_rows=cells[page.QUEUE_ROWS],
        loop_lag_ms=LoopLag(
            last=cells[page.LOOP_LAG_NS] / _MS,
            max=cells[page.LOOP_LAG_NS_MAX] / _MS,
            tick_age=(now_ns - cells[page.TICK_AT_NS]) / _MS if is_ready else None,
        ),
        busy_poll=BusyPoll(
            us=supervisor.busy_poll_us,
            spinning=bool(cells[page.SPINNING]) and is_ready,
            spun_s=cells[page.SPUN_NS] / _S,
        ),
        gc_pauses=GcPauses(
            count=cells[page.GC_PAUSES],
            total_ms=cells[page.GC_PAUSE_NS] / _MS,
            max_ms=cells[page.GC_PAUSE_NS_MAX] / _MS,
        ),
        shadow=default.shadow,
        engine=default.engine,
        policies=each,
        uptime_s=(now_ns - started_ns) / _S,
        ready_s=(now_ns - cells[page.READY_AT_NS]) / _S if is_ready else None,
        serving=_serving(supervisor, watchdog, now_ns),
        control=ControlProcess(os.getpid(), _resident_bytes(os.getpid())),
    )


def _policy(supervisor: Supervisor, policy: PolicyRollout) -> PolicyHealth:
    channel, ready, cells = policy.channel, supervisor.ready, supervisor.page.cells
    return PolicyHealth(
        policy=channel.name,
        version=channel.stable.version,
        digest=channel.stable.digest,
        sessions=cells[channel.cells.sessions],
        episodes=cells[channel.cells.episodes],
        engine=_engine(channel.stable.engine) if ready else None,
        versions=[engine_status(version, supervisor.workers) for version in channel.version_table],
        shadow=_shadow(policy.releases.shadows),
    )


def _engine(described: dict[str, Any]) -> EngineInfo | None:
    """Returns what an engine says of itself; None if a worker says something else than an engine does."""
    try:
        return msgspec.convert({**_NOT_SAID, **described}, EngineInfo)
    except msgspec.ValidationError:
        return None


def _shadow(shadows: Shadows) -> ShadowHealth | None:
    last = shadows.last
    if last is None:
        return None
    waiting_bytes = last.process.counts.waiting_bytes
    return ShadowHealth(last.version, shadows.state(last), waiting_bytes, last.process.pid, last.end_reason)


def _serving(supervisor: Supervisor, watchdog: Watchdog, now_ns: int) -> ServingProcess:
    pid, ready, restarts = supervisor.serving_pid, supervisor.ready, supervisor.restarts
    due_ns = restarts.restart_at_ns
    process = {
        "pid": pid,
        "state": supervisor.state.value,
        "reason": supervisor.describe(),
        "starts": supervisor.starts,
        "failures": restarts.failures,
        "last_exit_code": restarts.last_exit_code,
        "restart_in_s": None if due_ns is None else max(0, due_ns - now_ns) / _S,
        "stalls": watchdog.stalls,
        "hangs": watchdog.kills,
        "resident_bytes": _resident_bytes(pid),
    }
    return msgspec.convert({**process, **(ready.process if ready else {})}, ServingProcess)


def _resident_bytes(pid: int | None) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss) if pid is not None else 0
    except psutil.NoSuchProcess:
        return 0
