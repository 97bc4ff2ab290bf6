"""Where a version runs and why, as `/health`, `/v1` and the log show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from pilliond.ipc.device_status import device_status, engine_of_replica, engine_text
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.supervision.worker_pool import WorkerInfo, WorkerPool, resident_bytes_of

_FURTHEST_FIRST: Final = ("ready", "loading", "lost", "out")


class WorkerStatus(msgspec.Struct, frozen=True):
    """A worker of a version. The fields from `memory` on are empty or 0 until it has been ready once."""

    state: str
    """`loading`, `ready`, `lost` (another one is started after a pause) or `out` (none is)."""
    reason: str
    """Why it is out, or why the worker before this one was lost; empty if none was."""
    pid: int | None
    restarts: int
    """Workers started to replace a lost one."""
    resident_bytes: int
    memory: str
    """How its batch memory is held: `pinned` (registered with a device), `locked` or `pageable`."""
    depth: int
    """Batches that it has at once."""
    device_memory_mb: int
    """What it took of its devices until it was warm, a Python policy when it was staged; 0: nothing, or it was not measured."""
    python: str
    network: str
    """The network that it sees: `none` or `host`."""
    privileges: str
    """`none` or `kept`."""
    replica: int
    """Which of the version's workers it is: the index of its device in `engine.device`."""
    device: str
    """Where it computes, `cpu` or `cuda:N`."""
    fallback: str
    """What the settings ask for and it does not do, and why; empty if there is nothing."""


class EngineStatus(msgspec.Struct, frozen=True):
    """Where a loaded version runs, and why."""

    version: str
    digest: str
    placement: str
    """`inline` or `worker`; empty if that is not known yet."""
    placement_reason: str
    device: str
    """Where it computes, `cpu` or `cuda:N`; empty if that is not known yet."""
    fallback: str
    """What the settings ask for and the engine does not do, and why; empty if there is nothing."""
    worker: WorkerStatus | None
    """Its worker: of several the one that is furthest on, which says whether the version serves. None if it runs inline."""
    replicas: list[WorkerStatus]
    """Every worker of a version on several devices; empty for any other."""


def engine_status(version: SealedVersion, workers: WorkerPool) -> EngineStatus:
    """Returns where a loaded version runs."""
    placement, device = version.placement, device_status(version.engine)
    return EngineStatus(
        version=version.version,
        digest=version.digest,
        placement=placement.where if placement else "",
        placement_reason=placement.reason if placement else "",
        device=device.device,
        fallback=device.fallback,
        worker=worker_status(version, workers),
        replicas=replica_statuses(version, workers),
    )


def worker_status(version: SealedVersion, workers: WorkerPool) -> WorkerStatus | None:
    """Returns the state of a version's worker, of several that of the one furthest on; None if it has none."""
    infos = workers.workers_of(version.key)
    if not infos:
        return None
    return _status(min(infos, key=lambda info: _FURTHEST_FIRST.index(info.state)), version.engine)


def replica_statuses(version: SealedVersion, workers: WorkerPool) -> list[WorkerStatus]:
    """Returns the state of each worker of a version that has several; none for any other."""
    infos = workers.workers_of(version.key)
    return [_status(info, version.engine) for info in infos] if len(infos) > 1 else []


def _status(info: WorkerInfo, of_version: Mapping[str, Any]) -> WorkerStatus:
    engine = engine_of_replica(of_version, info.replica)
    device = device_status(engine)
    depth, device_mb = engine.get("depth"), engine.get("device_memory_mb")
    return WorkerStatus(
        state=info.state,
        reason=info.reason,
        pid=info.pid,
        restarts=info.restarts,
        resident_bytes=0 if info.pid is None else resident_bytes_of(info.pid),
        memory=engine_text(engine, "memory"),
        depth=depth if isinstance(depth, int) else 0,
        device_memory_mb=device_mb if isinstance(device_mb, int) else info.version.device_memory_mb,
        python=engine_text(engine, "python"),
        network=engine_text(engine, "network"),
        privileges=engine_text(engine, "privileges"),
        replica=info.replica,
        device=device.device,
        fallback=device.fallback,
    )
