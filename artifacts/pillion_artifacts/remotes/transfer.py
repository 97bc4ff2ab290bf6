"""Imports versions from a remote, and exports them to one. Every byte is hashed on its way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pillion_artifacts.card.layers import kind_of
from pillion_artifacts.errors import DigestMismatchError, InvalidArtifactError
from pillion_artifacts.limits import ATTESTATION_BYTES_MAX
from pillion_artifacts.names import checked_policy, checked_version, version_name
from pillion_artifacts.oci.blobs import Progress, blob_path, chunks_of, no_progress, open_regular
from pillion_artifacts.oci.manifest import (
    Descriptor,
    decode_attestation,
    digest_of,
)
from pillion_artifacts.oci.remote_interface import Offer, RemoteSource, RemoteTarget
from pillion_artifacts.store.manifest_checks import check_layers, decode_named
from pillion_artifacts.store.publication import attestation_entry, check_is_new, check_staged, index_entry
from pillion_artifacts.store.store import Resolved, Store
from pillion_artifacts.store.transaction import Change, Staged


class Transfer(msgspec.Struct, frozen=True):
    """The versions that were copied, and those that the store had already."""

    carried: list[Resolved]
    present: list[Resolved]
    attestations: int
    size_bytes: int


def import_versions(
    store: Store,
    source: RemoteSource,
    references: list[str],
    *,
    where: str,
    by: str = "",
    reason: str = "",
    progress: Progress = no_progress,
) -> Transfer:
    """Imports the versions that the references mean (without references, all) as one change of the store.

    Each version is checked as if it were published here. Raises `VersionExistsError` if the store has such a version
    with other content, `InvalidArtifactError` for a wrong file, `RemoteError`, `StoreError`.
    """
    offers = source.offers(references)
    carried: list[Resolved] = []
    size = 0
    with Change(store.root, where) as change:
        in_store = {entry.digest for entry in change.read_index().manifests}
        for offer in offers:
            if offer.digest not in in_store:
                size += _stage_version(change, source, offer, progress)
        attestations = {
            entry.digest: entry for offer in offers for entry in _stage_attestations(change, source, offer, in_store)
        }
        with change.deciding():
            index = change.read_index()
            new = [offer for offer in offers if all(entry.digest != offer.digest for entry in index.versions())]
            for offer in new:
                check_is_new(store.root, index, offer.policy, offer.version, offer.digest)
            records = [
                store.record(
                    "import", by, reason or where, policy=offer.policy, version=offer.version, digest=offer.digest
                )
                for offer in new
            ]
            known = {entry.digest for entry in index.manifests}
            new_attestations = [entry for digest, entry in attestations.items() if digest not in known]
            if new_attestations and not new:
                records = [store.record("import", by, reason or f"{len(new_attestations)} attestations from {where}")]
            entries = [
                index_entry(offer.policy, offer.version, offer.digest, len(offer.manifest), record.at, record.by)
                for offer, record in zip(new, records, strict=False)
            ]
            if entries or new_attestations:
                change.write_index(index.replaced([*index.manifests, *entries, *new_attestations]))
                change.commit(records)
            carried = [Resolved(offer.policy, offer.version, offer.digest) for offer in new]
    present = [_resolved(offer) for offer in offers if _resolved(offer) not in carried]
    return Transfer(carried, present, len(new_attestations), size)


def export_versions(
    store: Store, target: RemoteTarget, references: list[str], progress: Progress = no_progress
) -> Transfer:
    """Exports the versions that the references mean, with their attestations. Raises as `Store.read`, and `RemoteError`."""
    carried: list[Resolved] = []
    count = size = 0
    index = store.index()
    for resolved in dict.fromkeys(store.resolve(reference) for reference in references):
        manifest = store.manifest(resolved)
        data = store.read_manifest(resolved.digest, str(resolved))
        for descriptor in [manifest.config, *manifest.layers]:
            what = f"{resolved}: {descriptor.title or 'config'}"
            target.put_blob(resolved.policy, descriptor, checked_chunks(store.root, descriptor, what, progress))
            size += descriptor.size
        entry = index.find(resolved.policy, resolved.version)
        if entry is None:
            raise InvalidArtifactError(f"{resolved}: it is not in the index")
        target.put_version(entry, data)
        for attestation in index.about(resolved.digest):
            _export_attestation(store, target, resolved, attestation)
            count += 1
        carried.append(resolved)
    target.finish()
    return Transfer(carried, [], count, size)


def export_size(store: Store, references: list[str]) -> int:
    """The number of bytes that `export_versions` would copy."""
    resolved = {store.resolve(reference) for reference in references}
    return sum(layer.size for each in resolved for layer in store.manifest(each).layers)


def checked_chunks(
    root: Path, descriptor: Descriptor, what: str, progress: Progress = no_progress
) -> Iterator[memoryview]:
    """The bytes of a blob of the store. Raises `DigestMismatchError` before its end if they are not the published ones."""
    with open_regular(blob_path(root, descriptor.digest), what) as file:
        hashed = hashlib.sha256()
        size = 0
        for chunk in chunks_of(file):
            hashed.update(chunk)
            size += len(chunk)
            # checked before the last chunk: a reader that has all its bytes does not ask for more
            if size >= descriptor.size:
                _check_sent(hashed.hexdigest(), size, descriptor, what)
            yield chunk
            progress(len(chunk))
        _check_sent(hashed.hexdigest(), size, descriptor, what)


def _check_sent(digest: str, size: int, descriptor: Descriptor, what: str) -> None:
    if (f"sha256:{digest}", size) != (descriptor.digest, descriptor.size):
        raise DigestMismatchError(
            f"{what} is not what was published: expected {descriptor.digest}, got sha256:{digest} ({size} bytes)"
        )


def _resolved(offer: Offer) -> Resolved:
    return Resolved(offer.policy, offer.version, offer.digest)


def _export_attestation(store: Store, target: RemoteTarget, about: Resolved, entry: Descriptor) -> None:
    what = f"{about}: attestation"
    data = store.read_manifest(entry.digest, what)
    manifest = decode_attestation(data)
    for descriptor in [manifest.config, *manifest.layers]:
        target.put_blob(about.policy, descriptor, checked_chunks(store.root, descriptor, what))
    target.put_attestation(about.policy, entry, data)


def _stage_version(change: Change, source: RemoteSource, offer: Offer, progress: Progress) -> int:
    """Stages and checks the blobs of a version. Returns their size in bytes."""
    what = version_name(checked_policy(offer.policy), checked_version(offer.version))
    if digest_of(offer.manifest) != offer.digest:
        raise DigestMismatchError(f"{what}: manifest: expected {offer.digest}, got {digest_of(offer.manifest)}")
    manifest = decode_named(offer.manifest, what)
    if manifest.policy != offer.policy or manifest.version != offer.version:
        raise InvalidArtifactError(f"{what}: the manifest belongs to {version_name(manifest.policy, manifest.version)}")
    check_layers(manifest, what)
    change.stage_blob(offer.manifest)
    _stage(change, source, offer.policy, manifest.config, 2, f"{what}: config")
    staged = {
        layer.title: _stage(
            change, source, offer.policy, layer, kind_of(layer.title).bytes_max, f"{what}: {layer.title}", progress
        )
        for layer in manifest.layers
    }
    check_staged(staged, manifest.policy, manifest.version)
    return sum(each.size for each in staged.values())


def _stage(
    change: Change,
    source: RemoteSource,
    policy: str,
    descriptor: Descriptor,
    bytes_max: int,
    what: str,
    progress: Progress = no_progress,
) -> Staged:
    if descriptor.size > bytes_max:
        raise InvalidArtifactError(f"{what}: expected at most {bytes_max} bytes, got {descriptor.size}")
    staged = change.stage_chunks(source.chunks(policy, descriptor, what), descriptor.size, what, progress)
    if (staged.digest, staged.size) != (descriptor.digest, descriptor.size):
        raise DigestMismatchError(
            f"{what} is not what was published: expected {descriptor.digest} ({descriptor.size} bytes), "
            f"got {staged.digest} ({staged.size} bytes)"
        )
    return staged


def _stage_attestations(change: Change, source: RemoteSource, offer: Offer, present: set[str]) -> list[Descriptor]:
    """Stages the attestations of a version that are not in the store. Returns their index entries."""
    entries = []
    for data in offer.attestations:
        manifest = decode_attestation(data)
        if digest_of(data) in present or manifest.subject.digest != offer.digest:
            continue
        what = f"{version_name(offer.policy, offer.version)}: attestation"
        _stage(change, source, offer.policy, manifest.config, 2, what)
        for layer in manifest.layers:
            _stage(change, source, offer.policy, layer, ATTESTATION_BYTES_MAX, what)
        change.stage_blob(data)
        entries.append(attestation_entry(manifest, data))
    return entries
