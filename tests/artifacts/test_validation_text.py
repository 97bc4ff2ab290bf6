"""What is said of a wrong value: which ones would be right, and where it stands."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pillion_artifacts import InvalidArtifactError, ModelCard
from pillion_artifacts.card.model_card import parse_card
from pillion_artifacts.validation_text import text_of
from pilliond.settings.schema import Settings


def said(fields: dict[str, Any], root: type) -> str:
    with pytest.raises(msgspec.ValidationError) as failed:
        msgspec.convert(fields, root)
    return text_of(failed.value, root)


def card(**fields: Any) -> dict[str, Any]:
    tensor = {"name": "action", "dtype": "float32", "shape": [1]}
    texts = {"name": "x", "version": "1.0.0", "description": "", "licence": "MIT"}
    return {"schema": 3, **texts, "observation": [tensor], "outputs": [tensor], **fields}


@pytest.mark.parametrize(
    ("fields", "root", "text"),
    [
        (
            card(engine={"kind": "pythn"}),
            ModelCard,
            "expected one of onnx, python, torch, torchscript, got 'pythn' - at `$.engine.kind`",
        ),
        (
            card(outputs=[{"name": "action", "dtype": "float32", "shape": [1], "space": "box"}]),
            ModelCard,
            "expected one of Box, Discrete, MultiBinary, MultiDiscrete, Text, got 'box' - at `$.outputs[0].space`",
        ),
        (
            {"engine": {"precision": "fp16"}},
            Settings,
            "expected one of bfloat16, float16, float32, tf32, got 'fp16' - at `$.engine.precision`",
        ),
    ],
)
def test_an_enum_error_says_which_values_are_right(fields: dict[str, Any], root: type, text: str) -> None:
    assert said(fields, root) == text


def test_other_errors_stay_as_msgspec_words_them() -> None:
    assert said(card(licence=3), ModelCard) == "Expected `str`, got `int` - at `$.licence`"


def test_an_enum_error_of_an_unknown_place_stays_as_it_is() -> None:
    error = msgspec.ValidationError("Invalid enum value 'x' - at `$.nowhere[0]`")
    assert text_of(error, ModelCard) == str(error)


def test_an_empty_card_is_called_empty() -> None:
    with pytest.raises(InvalidArtifactError, match="model card: expected its fields, got an empty file"):
        parse_card(b"")
