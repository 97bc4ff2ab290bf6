"""Reads foreign OCI layouts from a folder, an archive or a bucket. Their content is untrusted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import semver

from pillion_artifacts.errors import ArtifactError, InvalidArtifactError, PolicyNotFoundError, RemoteError
from pillion_artifacts.limits import ATTESTATIONS_MAX, INDEX_BYTES_MAX, MANIFEST_BYTES_MAX
from pillion_artifacts.names import checked_version, parse_reference, version_name
from pillion_artifacts.oci.blobs import chunks_of, open_regular
from pillion_artifacts.oci.manifest import (
    Descriptor,
    Index,
    Manifest,
    decode_attestation,
    decode_index,
    decode_manifest,
    digest_of,
)
from pillion_artifacts.oci.remote_interface import Chunks, Offer
from pillion_artifacts.version_range import VersionRange


class Files(Protocol):
    """The files of a layout, by path."""

    where: str
    """Errors start with this."""

    def chunks(self, path: str) -> Chunks:
        """The bytes of a file. Raises `RemoteError` if there is none, `InvalidArtifactError` if it is no regular file."""
        ...


class FolderFiles:
    """The files of a folder."""

    def __init__(self, root: Path) -> None:
        self.where = str(root)
        self._root = root

    def chunks(self, path: str) -> Iterator[memoryview]:
        with open_regular(self._root / path, f"{self.where}: {path}") as file:
            yield from chunks_of(file)


class LayoutSource:
    """Reads versions from an OCI layout. The manifest names a version; names in the index are ignored."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def offers(self, references: list[str]) -> list[Offer]:
        versions, attestations = self._read(self._index())
        offers = [
            Offer(manifest.policy, manifest.version, digest, data, attestations.get(digest, []))
            for digest, (manifest, data) in versions.items()
        ]
        return select(offers, references, self._files.where)

    def chunks(self, policy: str, descriptor: Descriptor, what: str) -> Chunks:
        return self._files.chunks(blob_name(descriptor.digest))

    def _index(self) -> Index:
        try:
            return decode_index(read_bounded(self._files, "index.json", INDEX_BYTES_MAX))
        except InvalidArtifactError as error:
            raise InvalidArtifactError(f"{self._files.where}: {error}") from None

    def _read(self, index: Index) -> tuple[dict[str, tuple[Manifest, bytes]], dict[str, list[bytes]]]:
        """The versions by digest, and the attestations by the digest of their subject."""
        versions: dict[str, tuple[Manifest, bytes]] = {}
        attestations: dict[str, list[bytes]] = {}
        for entry in index.manifests:
            data = self._manifest(entry)
            try:
                versions[entry.digest] = (decode_manifest(data), data)
            except InvalidArtifactError:
                subject = _subject(data)
                if subject and len(attestations.setdefault(subject, [])) < ATTESTATIONS_MAX:
                    attestations[subject].append(data)
        return versions, attestations

    def _manifest(self, entry: Descriptor) -> bytes:
        data = read_bounded(self._files, blob_name(entry.digest), MANIFEST_BYTES_MAX)
        if digest_of(data) != entry.digest:
            raise InvalidArtifactError(
                f"{self._files.where}: {blob_name(entry.digest)}: its bytes are those of {digest_of(data)}"
            )
        return data


def blob_name(digest: str) -> str:
    """The path of a blob inside a layout."""
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def read_bounded(files: Files, path: str, bytes_max: int) -> bytes:
    """Reads a whole file. Raises `InvalidArtifactError` as soon as it has more than `bytes_max` bytes."""
    data = bytearray()
    for chunk in files.chunks(path):
        data += chunk
        if len(data) > bytes_max:
            raise InvalidArtifactError(f"{files.where}: {path}: expected at most {bytes_max} bytes, got more")
    return bytes(data)


def select(offers: list[Offer], references: list[str], where: str) -> list[Offer]:
    """The offers that the references mean, or all offers without references. Raises `PolicyNotFoundError`.

    An alias is refused, because aliases are not transferred.
    """
    if not offers:
        raise RemoteError(f"{where}: it has no policy")
    if not references:
        return offers
    chosen = {offer.digest: offer for offer in (_find(offers, reference, where) for reference in references)}
    return list(chosen.values())


def _find(offers: list[Offer], reference: str, where: str) -> Offer:
    """The offer with that digest, or the newest one that fits."""
    asked = parse_reference(reference)
    if asked.alias:
        raise PolicyNotFoundError(f"{where}: aliases are not transferred: expected a version, got {reference!r}")
    of_policy = [offer for offer in offers if offer.policy == asked.policy]
    if asked.digest:
        found = [offer for offer in of_policy if offer.digest == asked.digest]
    else:
        try:
            wanted = VersionRange(asked.range_text)
            found = [offer for offer in of_policy if checked_version(offer.version) in wanted]
        except ValueError as error:
            raise PolicyNotFoundError(str(error)) from None
    if not found:
        names = ", ".join(version_name(offer.policy, offer.version) for offer in offers[:8])
        raise PolicyNotFoundError(f"{where}: nothing there fits {reference!r}, it has {names}")
    return max(found, key=lambda offer: semver.Version.parse(offer.version))


def _subject(data: bytes) -> str:
    try:
        return decode_attestation(data).subject.digest
    except ArtifactError:
        # an OCI layout may have other manifests
        return ""
