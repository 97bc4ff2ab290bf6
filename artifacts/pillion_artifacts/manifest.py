"""The manifest of one policy version: which files it has and what each of them hashes to.

It is an OCI image manifest (OCI Image Format Specification 1.1), a layer for each file, named by the
`org.opencontainers.image.title` annotation. The SHA-256 of the manifest's own bytes is the artifact digest.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Literal

import msgspec

from pillion_artifacts.errors import InvalidArtifactError

ARTIFACT_TYPE: Final = "application/vnd.pillion.policy.v1"
MODEL_MEDIA_TYPE: Final = "application/vnd.pillion.policy.model.v1+onnx"
CARD_MEDIA_TYPE: Final = "application/vnd.pillion.policy.card.v1+yaml"

_TITLE = "org.opencontainers.image.title"
_VERSION = "org.opencontainers.image.version"
_EMPTY_JSON = b"{}"


class Descriptor(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A file by its content: media type, digest and size in bytes."""

    media_type: str
    digest: Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}$")]
    size: Annotated[int, msgspec.Meta(ge=0)]
    annotations: dict[str, str] = {}

    @property
    def title(self) -> str:
        return self.annotations.get(_TITLE, "")


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """The files of one policy version."""

    schema_version: Literal[2]
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"]
    artifact_type: Literal["application/vnd.pillion.policy.v1"]
    config: Descriptor
    layers: list[Descriptor]
    annotations: dict[str, str]

    @property
    def policy(self) -> str:
        return self.annotations.get(_TITLE, "")

    @property
    def version(self) -> str:
        return self.annotations.get(_VERSION, "")

    def layer(self, media_type: str) -> Descriptor:
        """The one layer of that media type; raises `InvalidArtifactError` where there is not exactly one."""
        found = [layer for layer in self.layers if layer.media_type == media_type]
        if len(found) != 1:
            raise InvalidArtifactError(f"manifest: expected one layer {media_type}, came {len(found)}")
        return found[0]


def describe(data: bytes, media_type: str, title: str = "") -> Descriptor:
    """The descriptor of `data`."""
    annotations = {_TITLE: title} if title else {}
    return Descriptor(media_type, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data), annotations)


def encode_manifest(policy: str, version: str, layers: list[Descriptor]) -> bytes:
    """The bytes of a manifest; the same files always give the same bytes."""
    manifest = Manifest(
        schema_version=2,
        media_type="application/vnd.oci.image.manifest.v1+json",
        artifact_type=ARTIFACT_TYPE,
        config=describe(_EMPTY_JSON, "application/vnd.oci.empty.v1+json"),
        layers=layers,
        annotations={_TITLE: policy, _VERSION: version},
    )
    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=2) + b"\n"


def decode_manifest(data: bytes) -> Manifest:
    """The manifest that `data` holds; raises `InvalidArtifactError`."""
    try:
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidArtifactError(f"manifest: {error}") from None
