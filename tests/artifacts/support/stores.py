"""Files that the tests of the store publish, and tools that damage them."""

from __future__ import annotations

from pathlib import Path

from pillion_artifacts.card.layers import kind_of
from pillion_artifacts.oci.manifest import (
    EMPTY_INDEX,
    EMPTY_JSON,
    MANIFEST_MEDIA_TYPE,
    Descriptor,
    describe,
    digest_of,
    encode_json,
    encode_manifest,
)
from pillion_artifacts.store.transaction import LAYOUT
from tests.harness import STORE, blob_of

POLICY = "lunar-lander"


def example_model() -> bytes:
    """The model of a policy that ships."""
    return blob_of(STORE, POLICY, "model.onnx").read_bytes()


def example_card(version: str = "1.0.0", policy: str = POLICY) -> str:
    """Its card, for another version or policy name."""
    text = blob_of(STORE, POLICY, "model_card.yaml").read_text()
    return text.replace("version: 1.0.0", f"version: {version}", 1).replace(f"name: {POLICY}", f"name: {policy}", 1)


def example_folder(folder: Path, version: str = "1.0.0", policy: str = POLICY) -> Path:
    """Makes a folder that can be published as that version."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(example_model())
    (folder / "model_card.yaml").write_text(example_card(version, policy))
    return folder


def flip(file: Path, position: float, bit: int = 0) -> None:
    """Flips one bit of a file; `position` counts from 0, its first byte, to 1, its last."""
    data = bytearray(file.read_bytes())
    data[min(len(data) - 1, int(position * len(data)))] ^= 1 << bit
    file.chmod(0o644)
    file.write_bytes(data)


def foreign_layout(folder: Path, files: dict[str, bytes], version: str = "1.0.0", policy: str = POLICY) -> Path:
    """Makes an OCI layout with one version of these unchecked files."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layers = [describe(data, kind_of(title).media_type, title) for title, data in files.items()]
    manifest = encode_manifest(policy, version, layers)
    for data in (*files.values(), manifest, EMPTY_JSON):
        (blobs / digest_of(data).removeprefix("sha256:")).write_bytes(data)
    entry = Descriptor(MANIFEST_MEDIA_TYPE, digest_of(manifest), len(manifest))
    (folder / "index.json").write_bytes(encode_json(EMPTY_INDEX.replaced([entry])))
    (folder / "oci-layout").write_bytes(LAYOUT)
    return folder
