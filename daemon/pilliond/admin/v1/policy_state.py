"""What `/v1` tells of a policy: which versions there are, what each is to the daemon, and what is under way."""

from __future__ import annotations

import msgspec

from pilliond.ipc.batch_certificate import Certificate
from pilliond.rollout.operation import OperationStatus


class Resident(msgspec.Struct, frozen=True):
    """A version that is loaded."""

    version: str
    digest: str
    role: str
    """`stable`, `previous`, `resident`, or the name of its arm."""
    leases: int
    """Episodes that hold it."""
    signed_by: list[str]
    certificate: Certificate | None
    """None where it was not staged."""


class ArmStatus(msgspec.Struct, frozen=True):
    """An arm of the route."""

    name: str
    version: str
    share: float


class ShadowStatus(msgspec.Struct, frozen=True):
    """The shadow that runs."""

    version: str
    share: float
    live: str
    """The version that it is compared with."""
    state: str


class PolicyState(msgspec.Struct, frozen=True):
    """What is stable, loaded, leased and under way."""

    policy: str
    phase: str
    stable: str
    digest: str
    previous: str | None
    follows: str | None
    """The alias that is followed."""
    sessions: int
    resident: list[Resident]
    route: list[ArmStatus]
    shadow: ShadowStatus | None
    swap_impact: float | None
    operation: OperationStatus | None
    """The last one."""


class PolicyList(msgspec.Struct, frozen=True):
    """The policies that are served."""

    policies: list[PolicyState]


class StoredVersion(msgspec.Struct, frozen=True):
    """A version in the store."""

    version: str
    digest: str
    role: str
    """What it is to the daemon; `stored`, where it is not loaded."""
    aliases: list[str]


class VersionList(msgspec.Struct, frozen=True):
    """The stored versions of a policy."""

    policy: str
    versions: list[StoredVersion]


class Draining(msgspec.Struct, frozen=True):
    """The daemon answers what has arrived, and ends."""

    phase: str
