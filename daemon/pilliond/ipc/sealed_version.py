"""A sealed version: a verified artifact in the control process, ready for a serving process."""

from __future__ import annotations

import os
from typing import Any

from pillion_artifacts.card.model_card import ModelCard
from pillion_artifacts.card.onnx_bounds import why_unbounded
from pillion_artifacts.oci.blobs import map_descriptor
from pillion_artifacts.store.daemon_locks import DaemonLock
from pillion_artifacts.store.sealed_artifact import SealedArtifact
from pilliond.ipc.batch_certificate import Certificate
from pilliond.ipc.control_channel import VersionRequest
from pilliond.ipc.placement import Placement, ServiceTime


class SealedVersion:
    """Owns the sealed memfds of the model and the golden pairs (-1: none), and the daemon lock on the stored version."""

    def __init__(
        self,
        policy: str,
        version: str,
        digest: str,
        card: ModelCard,
        model_descriptor: int,
        golden_descriptor: int = -1,
        lock: DaemonLock | None = None,
        signed_by: list[str] | None = None,
        certificate: Certificate | None = None,
        unbounded: str = "",
        placement: Placement | None = None,
    ) -> None:
        self.policy = policy
        self.version = version
        self.digest = digest
        """`sha256:` and 64 hexadecimal digits."""
        self.card = card
        self.model_descriptor = model_descriptor
        self.golden_descriptor = golden_descriptor
        self.lock = lock
        self.signed_by = signed_by or []
        self.certificate = certificate
        """How much the rest of a batch changes its answers; None if not measured yet."""
        self.unbounded = unbounded
        """Why its graph is not bounded; empty: it is bounded."""
        self.placement = placement
        """Where it runs, and why; None if not decided yet."""
        self.service_us: list[ServiceTime] = []
        """What each bucket of rows took when it was staged; empty: it was not."""
        self.fallback = ""
        """As in `VersionRequest`."""
        self.device_memory_mb = 0
        """As in `Staged`."""
        self.engine: dict[str, Any] = {}
        """Its engine, as a serving process that has loaded it describes it. Of a worker: not to be trusted."""
        self.metrics_index = 0
        """Its index into `VERSION_CELLS`, while a serving process has it."""

    def __str__(self) -> str:
        return f"{self.policy}@{self.version}"

    @property
    def key(self) -> bytes:
        """The digest as 32 bytes, as in messages."""
        return bytes.fromhex(self.digest.removeprefix("sha256:"))

    def descriptors(self) -> list[int]:
        """The descriptors that it owns."""
        return [descriptor for descriptor in (self.model_descriptor, self.golden_descriptor) if descriptor >= 0]

    def request(self) -> VersionRequest:
        """Returns what a serving process needs to build it."""
        card = self.card
        return VersionRequest(
            policy=self.policy,
            version=self.version,
            digest=self.key,
            spec=card.spec(),
            distribution=card.distribution,
            safe_action=card.safe_action,
            tolerance=card.tolerance,
            states=card.state,
            metrics_index=self.metrics_index,
            certificate=self.certificate,
            unbounded=self.unbounded,
            placement=self.placement,
            service_us=self.service_us,
            engine=card.engine,
            fallback=self.fallback,
        )

    def copy(self, lock: DaemonLock | None = None) -> SealedVersion:
        """Returns a copy with descriptors of its own, which takes over `lock`. No serving process has the copy."""
        model, golden = (os.dup(each) if each >= 0 else -1 for each in (self.model_descriptor, self.golden_descriptor))
        copy = SealedVersion(
            self.policy, self.version, self.digest, self.card, model, golden, lock, self.signed_by, self.certificate,
            self.unbounded, self.placement,
        )  # fmt: skip
        copy.fallback = self.fallback
        copy.device_memory_mb = self.device_memory_mb
        return copy

    def close(self) -> None:
        """Releases the memory and the lock. Safe to repeat."""
        for descriptor in self.descriptors():
            os.close(descriptor)
        self.model_descriptor = self.golden_descriptor = -1
        if self.lock is not None:
            self.lock.close()
            self.lock = None


def seal(artifact: SealedArtifact, lock: DaemonLock | None = None, signed_by: list[str] | None = None) -> SealedVersion:
    """Makes a sealed version of a sealed artifact, and looks whether its graph is bounded, if it is one of ONNX.

    Takes over the artifact's descriptors and the lock.
    """
    golden, card = artifact.golden, artifact.card
    is_graph = card.engine.kind == "onnx"
    for descriptor in artifact.files.values():
        if descriptor not in (artifact.model, golden):
            os.close(descriptor)
    return SealedVersion(
        artifact.policy,
        artifact.version,
        artifact.digest,
        card,
        artifact.model,
        golden,
        lock,
        signed_by,
        unbounded=why_unbounded(map_descriptor(artifact.model), card.observation) if is_graph else "",
    )
