"""Observations of text in a card: their form is checked, they are drawn as texts, and older schemas have none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pillion_artifacts import InvalidArtifactError, parse_card
from pillion_artifacts.card.golden_pairs import decode_golden
from pillion_artifacts.card.integer_bounds import integer_bounds
from pillion_artifacts.card.model_card import TensorCard
from pillion_artifacts.card.yaml_card import dump_card
from pillion_artifacts.errors import InvalidSourceError
from pillion_artifacts.publishing.common.observations import _row
from pillion_protocol.texts import fault_of_text
from tests.daemon.support.policies.texts import ROOM, SPEC, make_reader_folder, reader_card

CARD = reader_card()
PROMPT = f"dtype: uint8, shape: [{ROOM}], space: Text, low: [1]"


def test_a_card_with_texts_is_read_written_and_becomes_a_spec() -> None:
    card = parse_card(CARD.encode())
    assert parse_card(dump_card(card)) == card
    _, prompt, note = SPEC.observation
    assert (prompt.is_text, prompt.text_bytes_min, prompt.row_bytes) == (True, 1, ROOM)
    assert (note.is_text, note.text_bytes_min) == (True, 0)
    assert integer_bounds(prompt) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("uint8", "int8"), "observation.prompt.dtype: a Text has uint8, got int8"),
        ((f"[{ROOM}]", "[2, 3]"), "observation.prompt.shape: a Text has one number, its room in bytes, got [2, 3]"),
        ((f"[{ROOM}]", "[]"), "observation.prompt.shape: a Text has one number, its room in bytes, got []"),
        (("[1]", "[-1]"), f"observation.prompt.low: expected none or the least number of bytes, 0 to {ROOM}, got [-1.0]"),
        (("[1]", f"[{ROOM + 1}]"), "observation.prompt.low: expected none or the least number of bytes"),
        (("[1]", "[1.5]"), "observation.prompt.low: expected none or the least number of bytes"),
        (("[1]", "[.nan]"), "observation.prompt.low: expected none or the least number of bytes"),
        (("low: [1]", f"low: {[1] * ROOM}"), "observation.prompt.low: expected none or the least number of bytes"),
        (("low: [1]", "high: [255]"), "observation.prompt.high: a Text has none: its shape is the bound, got [255.0]"),
        (("shape: [4]", "shape: [4], space: Text"), "outputs.action.space: only observations are Text"),
        (
            ("outputs:", "frame_stack: [{observation: prompt, frames: 2}]\noutputs:"),
            "frame_stack.prompt: a Text has no frames",
        ),
        (("schema: 3", "schema: 2"), "observation.prompt.space: a card of schema 2 has no Text; expected schema 3"),
        (("schema: 3", "schema: 1"), "observation.prompt.space: a card of schema 1 has no Text; expected schema 3"),
        (("space: Text", "space: Prose"), "$.observation[1].space"),
    ],
)  # fmt: skip
def test_an_error_in_a_text_of_a_card_has_its_path(change: tuple[str, str], message: str) -> None:
    before, after = change
    wrong = CARD.replace(PROMPT, PROMPT.replace(before, after)) if before in PROMPT else CARD.replace(before, after)
    assert wrong != CARD
    with pytest.raises(InvalidArtifactError, match=re.escape(message)) as caught:
        parse_card(wrong.encode())
    assert "\n" not in str(caught.value)


def test_publishing_draws_texts_and_keeps_them_as_golden_pairs(tmp_path: Path) -> None:
    golden = decode_golden((make_reader_folder(tmp_path / "reader") / "golden.safetensors").read_bytes())
    for tensor in SPEC.observation[1:]:
        texts = [fault_of_text(row.tobytes(), tensor.text_bytes_min) for row in golden.inputs[tensor.name]]
        assert texts == [None] * golden.rows
    assert len({row.tobytes() for row in golden.inputs["prompt"]}) > golden.rows // 2


def test_a_text_of_an_environment_becomes_a_row() -> None:
    card = TensorCard("prompt", "uint8", [6], "Text", [1.0])
    assert _row({"prompt": "go"}, [card], "E-v0")["prompt"].tolist() == [[*b"go", 0, 0, 0, 0]]
    with pytest.raises(
        InvalidSourceError, match=r"E-v0: observation 'prompt': .*at most 6 bytes of UTF-8, got 'go away'"
    ):
        _row({"prompt": "go away"}, [card], "E-v0")
    with pytest.raises(InvalidSourceError, match="observation 'x': expected a Box, got a text"):
        _row({"x": "go"}, [TensorCard("x", "uint8", [6])], "E-v0")
