"""Versions of a shipped policy that differ in one number, so that each answer shows which version made it."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import Final

from pillion_artifacts import Artifact, Resolved, Store
from pillion_artifacts.card.layers import CARD_NAME, MODEL_NAME
from pillion_artifacts.oci.blobs import blob_path
from pillion_bench.errors import BadOptionError
from pillion_bench.shipped import examples_folder

POLICY: Final = "highway-fast"
"""It returns a value beside its action: a variant adds a number to that value."""

_BIAS: Final = b"value.2.bias\x4a\x04"
"""The bytes before the value's bias in the ONNX file (protobuf): the initializer's name, then field 9, `raw_data`, and its size."""


def shifted(artifact: Artifact, added: float) -> bytes:
    """Returns the model of `POLICY` with `added` in its value; raises `BadOptionError` for another model."""
    at = artifact.model.find(_BIAS) + len(_BIAS)
    if at < len(_BIAS):
        raise BadOptionError(f"{artifact.policy}: expected the model of {POLICY}")
    (bias,) = struct.unpack_from("<f", artifact.model, at)
    return artifact.model[:at] + struct.pack("<f", bias + added) + artifact.model[at + 4 :]


def publish_variant(root: Path, version: str, added: float) -> Resolved:
    """Publishes `POLICY` as `version` into the store at `root`, with a value that is greater by `added`."""
    examples = Store(examples_folder())
    resolved = examples.resolve(POLICY)
    (card,) = (layer for layer in examples.manifest(resolved).layers if layer.title == CARD_NAME)
    text = blob_path(examples.root, card.digest).read_text()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MODEL_NAME).write_bytes(shifted(examples.read(resolved), added))
        (Path(folder) / CARD_NAME).write_text(text.replace(f"version: {resolved.version}\n", f"version: {version}\n"))
        return Store(root).publish(POLICY, version, Path(folder), created_by="the bench")
