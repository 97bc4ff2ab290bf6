"""The store: policies in folders, `NAME/VERSION/`, each with a manifest that hashes every other file."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import msgspec
import semver

from pillion_artifacts.card import ModelCard, parse_card
from pillion_artifacts.errors import DigestMismatchError, InvalidArtifactError, PolicyNotFoundError
from pillion_artifacts.manifest import (
    CARD_MEDIA_TYPE,
    MODEL_MEDIA_TYPE,
    Descriptor,
    decode_manifest,
    describe,
    encode_manifest,
)
from pillion_artifacts.version_range import VersionRange

MANIFEST_NAME = "manifest.json"
MODEL_NAME = "model.onnx"
CARD_NAME = "model_card.yaml"

_POLICY_NAME = re.compile(r"^[a-z0-9]+(-[a-z0-9]+)*$")


class Artifact(msgspec.Struct, frozen=True):
    """A policy version whose every byte has been checked against its digest."""

    policy: str
    version: str
    digest: str
    """`sha256:` and 64 hexadecimal digits: the hash of the manifest, which hashes the rest."""
    card: ModelCard
    model: bytes
    """The ONNX file: these very bytes were hashed, so these and no others go to the loader."""


class Store:
    """Reads policies from `root`. Owns nothing that needs closing; safe to use from several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def policies(self) -> list[str]:
        """The names of all policies, sorted. Raises `PolicyNotFoundError` where there is no store."""
        if not self.root.is_dir():
            raise PolicyNotFoundError(f"there is no store at {self.root}")
        return sorted(entry.name for entry in self.root.iterdir() if entry.is_dir() and _POLICY_NAME.match(entry.name))

    def versions(self, policy: str) -> list[str]:
        """The versions of a policy, oldest first. Raises `PolicyNotFoundError`."""
        if policy not in self.policies():
            held = ", ".join(self.policies()) or "no policies"
            raise PolicyNotFoundError(f"policy {policy!r} is not in the store, which holds {held}")
        names = [entry.name for entry in (self.root / policy).iterdir() if (entry / MANIFEST_NAME).is_file()]
        return sorted((name for name in names if semver.Version.is_valid(name)), key=semver.Version.parse)

    def load(self, reference: str) -> Artifact:
        """The newest version that fits `reference`: `NAME`, `NAME@1.2.3`, `NAME@v1.2.3` or `NAME@>=1.2,<2`.

        Every file is read once, and hashed as it was read. Raises `PolicyNotFoundError` or
        `InvalidArtifactError`.
        """
        policy, _, range_text = reference.partition("@")
        try:
            wanted = VersionRange(range_text)
        except ValueError as error:
            raise PolicyNotFoundError(str(error)) from None
        versions = self.versions(policy)
        fitting = [version for version in versions if version in wanted]
        if not fitting:
            raise PolicyNotFoundError(
                f"policy {policy!r} has no version that fits {range_text or 'a release'!r}, "
                f"it has {', '.join(versions) or 'none'}"
            )
        return self._read(policy, fitting[-1])

    def _read(self, policy: str, version: str) -> Artifact:
        folder = self.root / policy / version
        manifest_bytes = _read_file(folder, MANIFEST_NAME)
        manifest = decode_manifest(manifest_bytes)
        if (manifest.policy, manifest.version) != (policy, version):
            raise InvalidArtifactError(
                f"{policy}@{version}: the manifest is that of {manifest.policy}@{manifest.version}"
            )
        contents = {layer.digest: _read_layer(folder, layer, f"{policy}@{version}") for layer in manifest.layers}
        card = parse_card(contents[manifest.layer(CARD_MEDIA_TYPE).digest])
        if (card.name, card.version) != (policy, version):
            raise InvalidArtifactError(f"{policy}@{version}: the card is that of {card.name}@{card.version}")
        return Artifact(
            policy=policy,
            version=version,
            digest=f"sha256:{hashlib.sha256(manifest_bytes).hexdigest()}",
            card=card,
            model=contents[manifest.layer(MODEL_MEDIA_TYPE).digest],
        )


def seal(folder: Path) -> str:
    """Writes the manifest of the model and the card in `folder` and gives the artifact digest.

    The manifest appears whole or not at all. Raises `InvalidArtifactError` where the card is not right.
    """
    card_bytes = _read_file(folder, CARD_NAME)
    card = parse_card(card_bytes)
    layers = [
        describe(_read_file(folder, MODEL_NAME), MODEL_MEDIA_TYPE, MODEL_NAME),
        describe(card_bytes, CARD_MEDIA_TYPE, CARD_NAME),
    ]
    data = encode_manifest(card.name, card.version, layers)
    temporary = folder / f".{MANIFEST_NAME}.{os.getpid()}"
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MANIFEST_NAME)
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _read_file(folder: Path, name: str) -> bytes:
    if "/" in name or name in ("", ".", ".."):
        raise InvalidArtifactError(f"expected a plain file name, came {name!r}")
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            return file.read()
    except OSError as error:
        raise InvalidArtifactError(f"{folder.parent.name}@{folder.name}: {name}: {error.strerror}") from None


def _read_layer(folder: Path, layer: Descriptor, reference: str) -> bytes:
    data = _read_file(folder, layer.title)
    came = describe(data, layer.media_type, layer.title)
    if came != layer:
        raise DigestMismatchError(
            f"{reference}: {layer.title} is not what was published: "
            f"expected {layer.digest} ({layer.size} bytes), came {came.digest} ({came.size} bytes)"
        )
    return data
