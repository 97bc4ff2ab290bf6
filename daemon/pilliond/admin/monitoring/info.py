"""`GET /info`: what the daemon is. It does not change while one version is stable."""

from __future__ import annotations

import sys

import msgspec

import pilliond
from pillion_artifacts.card.model_card import TensorCard
from pillion_protocol import PROTOCOL_VERSION
from pilliond.supervision.supervisor import Supervisor


class Info(msgspec.Struct, frozen=True):
    """Versions, addresses, and the tensors of the policy."""

    name: str
    version: str
    protocol_version: int
    python: str
    listen: list[str]
    """The data addresses; empty while the serving process is not ready."""
    policy: str
    policy_version: str
    digest: str
    observation: list[TensorCard]
    outputs: list[TensorCard]
    description: str
    licence: str


def info_of(supervisor: Supervisor) -> Info:
    """Returns what the daemon is."""
    stable = supervisor.stable
    return Info(
        name="pilliond",
        version=pilliond.__version__,
        protocol_version=PROTOCOL_VERSION,
        python=sys.version.split()[0],
        listen=supervisor.ready.listen if supervisor.ready else [],
        policy=stable.policy,
        policy_version=stable.version,
        digest=stable.digest,
        observation=stable.card.observation,
        outputs=stable.card.outputs,
        description=stable.card.description,
        licence=stable.card.licence,
    )
