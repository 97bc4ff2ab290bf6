"""The state of a policy as `/v1` returns it: its versions, their roles, and the running operation."""

from __future__ import annotations

import msgspec

from pilliond.ipc.batch_certificate import Certificate
from pilliond.rollout.operation import OperationStatus
from pilliond.supervision.worker_status import WorkerStatus


class Resident(msgspec.Struct, frozen=True):
    """A loaded version."""

    version: str
    digest: str
    role: str
    """`stable`, `previous`, `evaluation`, `resident`, or the name of its arm."""
    leases: int
    """Episodes that lease it."""
    signed_by: list[str]
    certificate: Certificate | None
    """None if it was not staged."""
    placement: str
    """Where it runs, `inline` or `worker`; empty if that is not known yet."""
    placement_reason: str
    device: str
    """Where it computes, `cpu` or `cuda:N`; empty if that is not known yet."""
    fallback: str
    """What the settings ask for and the engine does not do, and why; empty if there is nothing."""
    worker: WorkerStatus | None
    """Its worker: of several the one that is furthest on, which says whether the version serves. None if it runs inline."""
    replicas: list[WorkerStatus]
    """Every worker of a version on several devices; empty for any other."""


class ArmStatus(msgspec.Struct, frozen=True):
    """An arm of the route."""

    name: str
    version: str
    share: float


class ShadowStatus(msgspec.Struct, frozen=True):
    """The running shadow."""

    version: str
    share: float
    live: str
    """The version that it is compared with."""
    state: str


class PolicyState(msgspec.Struct, frozen=True):
    """The stable version, the loaded versions, the route and the last operation."""

    policy: str
    phase: str
    stable: str
    digest: str
    previous: str | None
    follows: str | None
    """The alias that the daemon follows."""
    sessions: int
    resident: list[Resident]
    route: list[ArmStatus]
    shadow: ShadowStatus | None
    swap_impact: float | None
    operation: OperationStatus | None
    """The last one, running or ended."""


class PolicyList(msgspec.Struct, frozen=True):
    """The served policies."""

    policies: list[PolicyState]


class StoredVersion(msgspec.Struct, frozen=True):
    """A version in the store."""

    version: str
    digest: str
    role: str
    """Its role in the daemon: as of a loaded version, `shadow`, or `stored` if it is not loaded."""
    placement: str
    """Where it runs, `inline` or `worker`; empty if it is not loaded or if that is not known yet."""
    worker_state: str
    """`loading`, `ready`, `lost` or `out`; empty if it has no worker."""
    aliases: list[str]


class VersionList(msgspec.Struct, frozen=True):
    """The stored versions of a policy."""

    policy: str
    versions: list[StoredVersion]


class Draining(msgspec.Struct, frozen=True):
    """The daemon answers the pending requests, then stops."""

    phase: str
