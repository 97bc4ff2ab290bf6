"""`GET /info`: what the daemon is. It does not change while one version is stable."""

from __future__ import annotations

import asyncio
import importlib.metadata
import sys

import msgspec

import pilliond
from pillion_artifacts.card.model_card import TensorCard
from pillion_protocol import PROTOCOL_VERSION
from pilliond.ipc.device_status import device_status
from pilliond.ipc.sealed_version import SealedVersion
from pilliond.supervision.supervisor import Supervisor


class PolicyInfo(msgspec.Struct, frozen=True):
    """The stable version of one served policy, and its tensors."""

    policy: str
    policy_version: str
    digest: str
    placement: str
    """Where it runs, `inline` or `worker`; empty if that is not known yet. `/health` has the state of its worker."""
    placement_reason: str
    device: str
    """Where it computes, `cpu` or `cuda:N`; empty if that is not known yet."""
    fallback: str
    """What the settings ask for and the engine does not do, and why; empty if there is nothing."""
    observation: list[TensorCard]
    outputs: list[TensorCard]
    description: str
    licence: str


class Info(msgspec.Struct, frozen=True):
    """Versions, addresses, and the tensors of the policies. The fields from `policy` to `licence` are those of the default one."""

    name: str
    version: str
    protocol_version: int
    python: str
    event_loop: str
    """The event loop of the control process, with its version."""
    listen: list[str]
    """The data addresses; empty while the serving process is not ready."""
    policy: str
    policy_version: str
    digest: str
    placement: str
    placement_reason: str
    device: str
    fallback: str
    observation: list[TensorCard]
    outputs: list[TensorCard]
    description: str
    licence: str
    policies: list[PolicyInfo]
    """Every served policy, the default one first."""


def info_of(supervisor: Supervisor) -> Info:
    """Returns what the daemon is."""
    policies = [_policy(channel.stable) for channel in supervisor.policies.values()]
    return Info(
        name="pilliond",
        version=pilliond.__version__,
        protocol_version=PROTOCOL_VERSION,
        python=sys.version.split()[0],
        event_loop=_event_loop(),
        listen=supervisor.ready.listen if supervisor.ready else [],
        **msgspec.structs.asdict(policies[0]),
        policies=policies,
    )


def _policy(stable: SealedVersion) -> PolicyInfo:
    device = device_status(stable.engine)
    return PolicyInfo(
        policy=stable.policy,
        policy_version=stable.version,
        digest=stable.digest,
        placement=stable.placement.where if stable.placement else "",
        placement_reason=stable.placement.reason if stable.placement else "",
        device=device.device,
        fallback=device.fallback,
        observation=stable.card.observation,
        outputs=stable.card.outputs,
        description=stable.card.description,
        licence=stable.card.licence,
    )


def _event_loop() -> str:
    """Returns the package of the running loop; with its version, unless it is Python's own."""
    package = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    return f"{package} {importlib.metadata.version(package)}" if package == "uvloop" else package
