"""What carries policies from store to store: where they can be taken from, and where they can be given to.

An archive, a folder and a bucket hold an OCI layout, a registry speaks OCI's protocol; all of them are one of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import msgspec

from pillion_artifacts.oci.manifest import Descriptor

Chunks = Iterator[bytes] | Iterator[memoryview]


class Offer(msgspec.Struct, frozen=True):
    """A version that a source has, with the manifests of what was said about it. Nothing of it is checked yet."""

    policy: str
    version: str
    digest: str
    manifest: bytes
    attestations: list[bytes]


class RemoteSource(Protocol):
    """Where versions come from. Everything that it gives is hashed by whoever takes it."""

    def offers(self, references: list[str]) -> list[Offer]:
        """The versions that the references mean there, or all where none is given; raises `RemoteError`."""
        ...

    def chunks(self, policy: str, descriptor: Descriptor, what: str) -> Chunks:
        """The bytes of a blob; raises `RemoteError` or `InvalidArtifactError` about `what`."""
        ...


class RemoteTarget(Protocol):
    """Where versions go. `finish` makes what was put visible, where that is one step."""

    def put_blob(self, policy: str, descriptor: Descriptor, chunks: Chunks) -> None:
        """Stores a blob; `chunks` raise before their end where they are not what `descriptor` says."""
        ...

    def put_version(self, entry: Descriptor, manifest: bytes) -> None:
        """Stores the manifest of a version under its name; `entry` is its entry in the index."""
        ...

    def put_attestation(self, policy: str, entry: Descriptor, manifest: bytes) -> None:
        """Stores the manifest of what was said about a version; `entry` is its entry in the index."""
        ...

    def finish(self) -> None:
        """All of it is there."""
        ...
