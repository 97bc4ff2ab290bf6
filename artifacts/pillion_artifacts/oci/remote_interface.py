"""The interfaces of remotes: where versions are imported from, and where they are exported to.

Archives, folders and buckets contain an OCI layout. A registry has OCI's HTTP protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import msgspec

from pillion_artifacts.oci.manifest import Descriptor

Chunks = Iterator[bytes] | Iterator[memoryview]


class Offer(msgspec.Struct, frozen=True):
    """A version at a remote, with the manifests of its attestations. Nothing of it is checked yet."""

    policy: str
    version: str
    digest: str
    manifest: bytes
    attestations: list[bytes]


class RemoteSource(Protocol):
    """A remote to import from. The importer hashes everything that it reads."""

    def offers(self, references: list[str]) -> list[Offer]:
        """The versions that the references mean, or all versions without references. Raises `RemoteError`."""
        ...

    def chunks(self, policy: str, descriptor: Descriptor, what: str) -> Chunks:
        """The bytes of a blob. Raises `RemoteError` or `InvalidArtifactError`, which start with `what`."""
        ...


class RemoteTarget(Protocol):
    """A remote to export to."""

    def put_blob(self, policy: str, descriptor: Descriptor, chunks: Chunks) -> None:
        """Stores a blob. `chunks` raises before its end if the bytes do not match `descriptor`."""
        ...

    def put_version(self, entry: Descriptor, manifest: bytes) -> None:
        """Stores the manifest of a version. `entry` is its entry in the index."""
        ...

    def put_attestation(self, policy: str, entry: Descriptor, manifest: bytes) -> None:
        """Stores the manifest of an attestation. `entry` is its entry in the index."""
        ...

    def finish(self) -> None:
        """Makes everything visible at once, if the remote can do that."""
        ...
