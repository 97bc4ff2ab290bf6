"""The files that a policy version may have, with their media types and maximal sizes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from pillion_artifacts.errors import InvalidArtifactError
from pillion_artifacts.limits import (
    CARD_BYTES_MAX,
    GOLDEN_BYTES_MAX,
    MODEL_BYTES_MAX,
    PREPROCESSOR_BYTES_MAX,
    TUNED_BYTES_MAX,
)

MODEL_NAME: Final = "model.onnx"
CARD_NAME: Final = "model_card.yaml"
GOLDEN_NAME: Final = "golden.safetensors"
TUNED_NAME: Final = "tuned.json"

MODEL_MEDIA_TYPE: Final = "application/vnd.pillion.policy.model.v1+onnx"
CARD_MEDIA_TYPE: Final = "application/vnd.pillion.policy.card.v1+yaml"


MODEL_NAMES: Final = {
    "onnx": MODEL_NAME,
    "torch": "model.pt2",
    "torchscript": "model.torchscript",
    "python": "model.safetensors",
}
"""The name of the model file, by the kind of the card's engine. A version has one of them."""


class LayerKind(msgspec.Struct, frozen=True):
    """A file that a version may have."""

    title: str
    media_type: str
    bytes_max: int
    required: bool = False


KINDS: Final = (
    LayerKind(MODEL_NAME, MODEL_MEDIA_TYPE, MODEL_BYTES_MAX),
    LayerKind(MODEL_NAMES["torch"], "application/vnd.pillion.policy.model.v1+pt2", MODEL_BYTES_MAX),
    LayerKind(MODEL_NAMES["torchscript"], "application/vnd.pillion.policy.model.v1+torchscript", MODEL_BYTES_MAX),
    LayerKind(MODEL_NAMES["python"], "application/vnd.pillion.policy.model.v1+safetensors", MODEL_BYTES_MAX),
    LayerKind(CARD_NAME, CARD_MEDIA_TYPE, CARD_BYTES_MAX, required=True),
    LayerKind(GOLDEN_NAME, "application/vnd.pillion.policy.golden.v1+safetensors", GOLDEN_BYTES_MAX),
    LayerKind("preprocessor.onnx", "application/vnd.pillion.policy.preprocessor.v1+onnx", PREPROCESSOR_BYTES_MAX),
    LayerKind("preprocessor.json", "application/vnd.pillion.policy.preprocessor.v1+json", TUNED_BYTES_MAX),
    LayerKind(TUNED_NAME, "application/vnd.pillion.policy.tuned.v1+json", TUNED_BYTES_MAX),
)
"""In the order of the manifest. No kind of file can contain a pickle."""

_BY_TITLE: Final = {kind.title: kind for kind in KINDS}


def model_name(engine: str) -> str:
    """The name of the model file of an engine."""
    return MODEL_NAMES[engine]


def check_one_model(titles: Iterable[str], what: str) -> None:
    """Raises `InvalidArtifactError` unless exactly one of these files is a model. Which one it must be, the card says."""
    models = sorted(title for title in titles if title in MODEL_NAMES.values())
    if len(models) != 1:
        raise InvalidArtifactError(
            f"{what}: expected one of {', '.join(MODEL_NAMES.values())}, got {', '.join(models) or 'none'}"
        )


def kind_of(title: str) -> LayerKind:
    """The kind of a file by its name. Raises `InvalidArtifactError` for any other name."""
    try:
        return _BY_TITLE[title]
    except KeyError:
        raise InvalidArtifactError(f"expected one of {', '.join(_BY_TITLE)}, got {title!r}") from None
