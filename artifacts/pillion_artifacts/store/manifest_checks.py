"""What the manifest of a version must be, whether it was published here or comes from elsewhere."""

from __future__ import annotations

from pillion_artifacts.card.layers import KINDS, LayerKind, check_one_model, kind_of
from pillion_artifacts.errors import InvalidArtifactError
from pillion_artifacts.oci.manifest import Manifest, decode_manifest


def decode_named(data: bytes, what: str) -> Manifest:
    """Decodes a manifest. Raises `InvalidArtifactError`, whose message starts with `what`."""
    try:
        return decode_manifest(data)
    except InvalidArtifactError as error:
        raise InvalidArtifactError(f"{what}: {error}") from None


def check_layers(manifest: Manifest, what: str) -> None:
    """Raises `InvalidArtifactError` for an unknown, repeated or missing file, or one with a wrong media type."""
    titles = [layer.title for layer in manifest.layers]
    for layer in manifest.layers:
        kind = _kind(layer.title, what)
        if layer.media_type != kind.media_type or titles.count(layer.title) > 1:
            raise InvalidArtifactError(f"{what}: manifest: expected one {layer.title} of type {kind.media_type}")
    for required in (kind for kind in KINDS if kind.required):
        if required.title not in titles:
            raise InvalidArtifactError(f"{what}: manifest: expected one layer {required.title}, got none")
    check_one_model(titles, f"{what}: manifest")


def _kind(title: str, what: str) -> LayerKind:
    try:
        return kind_of(title)
    except InvalidArtifactError as error:
        raise InvalidArtifactError(f"{what}: manifest: {error}") from None
