"""Verifies versions without loading them: hashes every byte in chunks, and each blob only once."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from pillion_artifacts.card.content_checks import check_file, check_files
from pillion_artifacts.errors import ArtifactError
from pillion_artifacts.oci.blobs import Progress, blob_path, check_blob, map_file, no_progress
from pillion_artifacts.oci.manifest import Descriptor, Manifest
from pillion_artifacts.store.store import Resolved, Store
from pillion_artifacts.verify.attestations import read_attestation
from pillion_artifacts.verify.trust_policy import Trust, TrustPolicy, examine_trust


class Verdict(msgspec.Struct, frozen=True):
    """The result of verifying one version."""

    policy: str
    version: str
    digest: str
    size_bytes: int = 0
    files: int = 0
    faults: list[str] = []
    """A line each; empty if the version is as published, and signed if a trust policy requires that."""
    attestations: int = 0
    signed_by: list[str] = []
    """The trusted keys that signed it, if there is a trust policy."""
    seconds: float = 0.0

    @property
    def intact(self) -> bool:
        return not self.faults


class Verifier:
    """Verifies versions of one store, and remembers which blobs it has hashed. Owns nothing."""

    def __init__(self, store: Store, progress: Progress = no_progress, trust: TrustPolicy | None = None) -> None:
        self._store = store
        self._index = store.index()
        self._trust = trust
        self._progress = progress
        self._hashed: dict[tuple[str, int], str] = {}

    def verify(self, resolved: Resolved) -> Verdict:
        """Verifies a version. Faults of the version are reported, not raised."""
        started_s = time.monotonic()
        verdict = Verdict(resolved.policy, resolved.version, resolved.digest)
        try:
            manifest = self._store.manifest(resolved)
        except ArtifactError as error:
            return msgspec.structs.replace(verdict, faults=[str(error)])
        described = [manifest.config, *manifest.layers]
        faults = [fault for descriptor in described if (fault := self.blob_fault(descriptor, str(resolved)))]
        if not faults:
            faults = self._content_faults(resolved, manifest)
        attestations = self._index.about(resolved.digest)
        faults += [fault for entry in attestations if (fault := self._attestation_fault(resolved, entry))]
        trust = self._examine_trust(resolved)
        return msgspec.structs.replace(
            verdict,
            attestations=len(attestations),
            signed_by=trust.signed_by,
            size_bytes=sum(descriptor.size for descriptor in described),
            files=len(manifest.layers),
            faults=[*faults, *([trust.refusal] if trust.refusal else [])],
            seconds=time.monotonic() - started_s,
        )

    def blob_fault(self, descriptor: Descriptor, what: str) -> str:
        """The fault of a blob, empty if there is none. Only the first call hashes the blob."""
        about = f"{what}: {descriptor.title or 'config'}"
        key = (descriptor.digest, descriptor.size)
        if key not in self._hashed:
            self._hashed[key] = _fault(lambda: check_blob(self._store.root, descriptor, "", self._progress))
        known = self._hashed[key]
        return f"{about}{known}" if known else ""

    def _attestation_fault(self, resolved: Resolved, entry: Descriptor) -> str:
        return _fault(lambda: read_attestation(self._store, resolved, entry))

    def _examine_trust(self, resolved: Resolved) -> Trust:
        if self._trust is None:
            return Trust()
        return examine_trust(self._store, resolved, self._trust, self._store.now())

    def _content_faults(self, resolved: Resolved, manifest: Manifest) -> list[str]:
        return [fault for fault in [_fault(lambda: self._check_contents(resolved, manifest))] if fault]

    def _check_contents(self, resolved: Resolved, manifest: Manifest) -> None:
        root, what = self._store.root, str(resolved)
        card = self._store.card(resolved, manifest)
        check_files([layer.title for layer in manifest.layers], card, what)
        for layer in manifest.layers:
            check_file(map_file(blob_path(root, layer.digest)), layer.title, card, f"{what}: {layer.title}")


def all_versions(store: Store) -> list[Resolved]:
    """All versions of the store."""
    return [Resolved(entry.title, entry.version, entry.digest) for entry in store.index().versions()]


def _fault(check: Callable[[], object]) -> str:
    """The error that `check` raises, empty if it raises none."""
    try:
        check()
    except ArtifactError as error:
        return str(error)
    return ""
