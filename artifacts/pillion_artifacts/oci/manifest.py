"""Manifests and indexes by the OCI Image Format Specification 1.1.

A *manifest* lists the files of one policy version, one layer each, named by the `org.opencontainers.image.title`
annotation. The SHA-256 of its bytes is the artifact digest. The *index* lists the manifests of a store.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Literal

import msgspec

from pillion_artifacts.errors import UNREADABLE, InvalidArtifactError
from pillion_artifacts.limits import LAYERS_MAX

ARTIFACT_TYPE: Final = "application/vnd.pillion.policy.v1"
MANIFEST_MEDIA_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX_MEDIA_TYPE: Final = "application/vnd.oci.image.index.v1+json"
EMPTY_MEDIA_TYPE: Final = "application/vnd.oci.empty.v1+json"

TITLE: Final = "org.opencontainers.image.title"
VERSION: Final = "org.opencontainers.image.version"
CREATED: Final = "org.opencontainers.image.created"
REF_NAME: Final = "org.opencontainers.image.ref.name"
SUBJECT: Final = "vnd.pillion.subject"
"""In the index, the subject of an attestation, so that finding those of a version needs no manifest."""
PUBLISHED_BY: Final = "vnd.pillion.published-by"

EMPTY_JSON: Final = b"{}"
"""The config that OCI requires of an artifact without one."""

Digest = Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}$")]


class Descriptor(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A blob: media type, digest and size in bytes."""

    media_type: str
    digest: Digest
    size: Annotated[int, msgspec.Meta(ge=0)]
    annotations: dict[str, str] = {}
    artifact_type: str = ""

    @property
    def title(self) -> str:
        return self.annotations.get(TITLE, "")

    @property
    def version(self) -> str:
        return self.annotations.get(VERSION, "")

    @property
    def subject(self) -> str:
        """The digest of an attestation's subject, empty for a version."""
        return self.annotations.get(SUBJECT, "")


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """The files of one policy version."""

    schema_version: Literal[2]
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"]
    artifact_type: Literal["application/vnd.pillion.policy.v1"]
    config: Descriptor
    layers: Annotated[list[Descriptor], msgspec.Meta(max_length=LAYERS_MAX)]
    annotations: dict[str, str]

    @property
    def policy(self) -> str:
        return self.annotations.get(TITLE, "")

    @property
    def version(self) -> str:
        return self.annotations.get(VERSION, "")

    def layer(self, media_type: str) -> Descriptor:
        """The layer of that media type. Raises `InvalidArtifactError` if there is not exactly one."""
        found = [layer for layer in self.layers if layer.media_type == media_type]
        if len(found) != 1:
            raise InvalidArtifactError(f"manifest: expected one layer {media_type}, got {len(found)}")
        return found[0]


class AttestationManifest(msgspec.Struct, frozen=True, rename="camel"):
    """A signed statement about a version: an artifact of its own whose subject is the version."""

    schema_version: Literal[2]
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"]
    artifact_type: str
    config: Descriptor
    layers: Annotated[list[Descriptor], msgspec.Meta(min_length=1, max_length=LAYERS_MAX)]
    subject: Descriptor
    annotations: dict[str, str] = {}


class Index(msgspec.Struct, frozen=True, rename="camel"):
    """The manifests of a store. Entries of versions have names, entries of attestations have none."""

    schema_version: Literal[2]
    media_type: Literal["application/vnd.oci.image.index.v1+json"]
    manifests: list[Descriptor]

    def versions(self) -> list[Descriptor]:
        """The entries of policy versions."""
        return [entry for entry in self.manifests if entry.artifact_type == ARTIFACT_TYPE]

    def about(self, digest: str) -> list[Descriptor]:
        """The entries of the attestations about a version."""
        return [entry for entry in self.manifests if entry.subject == digest]

    def find(self, policy: str, version: str) -> Descriptor | None:
        """The entry of a version, None if there is none."""
        return next((entry for entry in self.versions() if (entry.title, entry.version) == (policy, version)), None)

    def replaced(self, manifests: list[Descriptor]) -> Index:
        """A copy of the index with these entries."""
        return msgspec.structs.replace(self, manifests=manifests)


EMPTY_INDEX: Final = Index(2, INDEX_MEDIA_TYPE, [])

_index_decoder = msgspec.json.Decoder(Index)


def digest_of(data: bytes) -> str:
    """`sha256:` and the 64 hexadecimal digits of the hash of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def describe(data: bytes, media_type: str, title: str = "") -> Descriptor:
    """The descriptor of `data`."""
    annotations = {TITLE: title} if title else {}
    return Descriptor(media_type, digest_of(data), len(data), annotations)


EMPTY_CONFIG: Final = describe(EMPTY_JSON, EMPTY_MEDIA_TYPE)


def encode_manifest(policy: str, version: str, layers: list[Descriptor]) -> bytes:
    """Encodes a manifest. The same files always have the same bytes."""
    return encode_json(
        Manifest(
            schema_version=2,
            media_type=MANIFEST_MEDIA_TYPE,
            artifact_type=ARTIFACT_TYPE,
            config=EMPTY_CONFIG,
            layers=layers,
            annotations={TITLE: policy, VERSION: version},
        )
    )


def encode_attestation(
    artifact_type: str, layer: Descriptor, subject: Descriptor, annotations: dict[str, str]
) -> bytes:
    """Encodes the manifest of an attestation about `subject`."""
    bare = Descriptor(subject.media_type, subject.digest, subject.size)
    return encode_json(
        AttestationManifest(2, MANIFEST_MEDIA_TYPE, artifact_type, EMPTY_CONFIG, [layer], bare, annotations)
    )


def encode_json(value: object) -> bytes:
    """Encodes a value as indented JSON. The same value always has the same bytes."""
    return msgspec.json.format(msgspec.json.encode(value, order="deterministic"), indent=2) + b"\n"


def decode_manifest(data: bytes) -> Manifest:
    """Decodes the manifest of a version. Raises `InvalidArtifactError`."""
    try:
        return msgspec.json.decode(data, type=Manifest)
    except UNREADABLE as error:
        raise InvalidArtifactError(f"manifest: {error}") from None


def decode_attestation(data: bytes) -> AttestationManifest:
    """Decodes the manifest of an attestation. Raises `InvalidArtifactError`."""
    try:
        return msgspec.json.decode(data, type=AttestationManifest)
    except UNREADABLE as error:
        raise InvalidArtifactError(f"attestation: {error}") from None


def decode_index(data: bytes) -> Index:
    """Decodes an index. Raises `InvalidArtifactError`."""
    try:
        return _index_decoder.decode(data)
    except UNREADABLE as error:
        raise InvalidArtifactError(f"index.json: {error}") from None
