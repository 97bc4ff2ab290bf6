"""Rows of text observations are checked: UTF-8, then zero bytes, and long enough; few rows and many alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion_artifacts.card.drawn_texts import draw_texts
from pillion_artifacts.card.golden_pairs import Arrays, Golden, encode_golden
from pillion_artifacts.card.model_card import Tolerance
from pillion_protocol import Spec, TensorSpec
from pillion_protocol.texts import encode_text, fault_of_text
from pilliond.engine.batch_memory import BatchMemory
from pilliond.engine.certifier import certify
from pilliond.engine.checks.text_rows import TextRows, are_texts, first_bad_text
from pilliond.engine.interface import EngineError
from pilliond.engine.onnx import OnnxEngine
from pilliond.engine.parity import check_parity
from tests.daemon.support.policies.texts import NOTE_ROOM, ROOM, SPEC, reader_model

MANY = 100
OUTPUTS = [TensorSpec("action", "float32", [])]


def rows_of(texts: list[str], room: int) -> bytes:
    return b"".join(encode_text(text, 0, room) for text in texts)


@pytest.mark.parametrize("count", [1, 3, MANY])
@pytest.mark.parametrize(
    "bad", [b"\xff123", b"12\xc3\0", b"12\0\x31", b"\0\0\x31\x32", b"123\xc3", b"\xa9123", b"\xed\xa0\x80\0", b"\xc0\x80\0\0"]
)  # fmt: skip
def test_a_single_row_that_is_no_text_is_found(count: int, bad: bytes) -> None:
    texts = rows_of(["é12", "", "abcd", "🤖"] * count, 4)
    assert are_texts(texts, 4, 0)
    for row in (0, 1, 2 * count, 4 * count - 1):
        assert not are_texts(texts[: 4 * row] + bad + texts[4 * row + 4 :], 4, 0)


@pytest.mark.parametrize("count", [3, MANY])
def test_characters_must_not_reach_into_the_next_row(count: int) -> None:
    # together they are UTF-8
    assert not are_texts("aéa".encode() * count, 2, 0)
    assert are_texts("aaéa".encode() + b"a" * (5 * count), 5, 0)


@pytest.mark.parametrize("count", [2, MANY])
def test_a_text_that_is_too_short_is_found(count: int) -> None:
    assert are_texts(rows_of(["ab"] * count, 4), 4, 2)
    assert not are_texts(rows_of([*["ab"] * (count - 1), "a"], 4), 4, 2)
    assert not are_texts(rows_of([*["ab"] * (count - 1), ""], 4), 4, 1)


@given(st.integers(1, 5), st.integers(0, 5), st.lists(st.binary(min_size=1, max_size=3), min_size=1, max_size=80))
def test_the_check_of_many_rows_agrees_with_that_of_each(room: int, least: int, parts: list[bytes]) -> None:
    _agree(b"".join(parts), room, min(least, room))


@given(st.integers(1, 6), st.integers(0, 2), st.lists(st.text(max_size=3), min_size=1, max_size=60))
def test_they_agree_where_most_rows_are_texts(room: int, least: int, texts: list[str]) -> None:
    encoded = [text.encode()[:room].ljust(room, b"\0") for text in texts]
    _agree(b"".join(encoded), room, min(least, room))


def _agree(data: bytes, room: int, least: int) -> None:
    data = data[: len(data) // room * room]
    rows = [data[first : first + room] for first in range(0, len(data), room)]
    is_text = [fault_of_text(row, least) is None for row in rows]
    assert are_texts(data, room, least) == all(is_text)
    tensor = TensorSpec("x", "uint8", [room], "Text", [float(least)] if least else [])
    bad = first_bad_text([tensor], [np.frombuffer(data, np.uint8).reshape(-1, room)])
    assert (None if bad is None else bad.row) == (is_text.index(False) if False in is_text else None)
    for row, is_sound in zip(rows, is_text, strict=True):
        assert is_sound == _is_text_by_the_book(row, least)


def _is_text_by_the_book(row: bytes, least: int) -> bool:
    text, _, rest = row.partition(b"\0")
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return not rest.strip(b"\0") and len(text) >= least


def test_what_was_found_sound_is_checked_again_when_it_changes() -> None:
    array = np.zeros((MANY, 4), np.uint8)
    rows = TextRows(TensorSpec("x", "uint8", [4], "Text"), array)
    array[:] = np.frombuffer(b"abcd", np.uint8)
    assert rows.is_text(MANY)
    assert rows.is_text(3)
    array[1, 2] = 0
    assert not rows.is_text(3)
    assert not rows.is_text(MANY)
    assert rows.is_text(1)
    array[1, 2] = 0x63
    assert rows.is_text(MANY)


def memory(*observation: TensorSpec) -> BatchMemory:
    inputs = [np.zeros((4, *tensor.shape), tensor.dtype) for tensor in observation]
    return BatchMemory(Spec([*observation], OUTPUTS), inputs, {"action": np.zeros(4, np.float32)}, [])


def test_only_the_memory_of_a_policy_that_observes_text_looks_for_it() -> None:
    speed, prompt = TensorSpec("speed", "float32", [2]), TensorSpec("prompt", "uint8", [4], "Text", [1.0])
    assert type(memory(speed)) is BatchMemory
    assert "is_sound" not in vars(type(memory(speed))).get("__slots__", ())
    checked = memory(speed, prompt)
    assert isinstance(checked, BatchMemory)
    checked.inputs[1][:] = np.frombuffer(b"abc\0", np.uint8)
    assert checked.is_sound(4)
    checked.inputs[1][3, 1] = 0
    assert checked.is_sound(3)
    assert not checked.is_sound(4)
    checked.inputs[0][0, 0] = np.nan
    assert not checked.is_sound(3)


def test_the_least_number_of_bytes_is_no_bound_of_each_byte() -> None:
    checked = memory(TensorSpec("prompt", "uint8", [4], "Text", [2.0]))
    checked.inputs[0][:] = np.frombuffer(b"\x01\x01\0\0", np.uint8)
    assert checked.is_sound(4)


def test_drawn_texts_are_texts_of_every_length() -> None:
    drawn = draw_texts(2, 12, 200, np.random.default_rng(1))
    assert drawn.shape == (200, 12)
    assert drawn.dtype == np.uint8
    assert are_texts(drawn.tobytes(), 12, 2)
    assert {len(bytes(row).rstrip(b"\0")) for row in drawn} == set(range(2, 13))
    assert (drawn >= 0x80).any()
    assert np.array_equal(drawn, draw_texts(2, 12, 200, np.random.default_rng(1)))


def test_a_version_is_certified_with_texts() -> None:
    engine = OnnxEngine(reader_model(), SPEC, [], 4)
    certificate = certify(engine, SPEC, [], None, 4)
    assert certificate.observations == 64
    for array, tensor in zip(engine.inputs, SPEC.observation, strict=True):
        if tensor.is_text:
            assert are_texts(array.tobytes(), tensor.row_bytes, tensor.text_bytes_min)


def test_a_golden_observation_that_is_no_text_is_named() -> None:
    prompts = np.zeros((3, ROOM), np.uint8)
    prompts[:, 0] = ord("a")
    inputs: Arrays = {
        "speed": np.zeros((3, 2), np.float32),
        "prompt": prompts,
        "note": np.zeros((3, NOTE_ROOM), np.uint8),
    }
    action = np.zeros((3, 4), np.float32)
    action[:, :2] = ord("a")
    engine = OnnxEngine(reader_model(), SPEC, [], 4)
    check_parity(engine, SPEC, [], encode_golden(Golden(inputs, {"action": action})), Tolerance(), 4)
    inputs["note"][2, 1] = 7
    with pytest.raises(
        EngineError, match=r"golden pairs: observation 'note': expected nothing but zero bytes .* in row 2"
    ):
        check_parity(engine, SPEC, [], encode_golden(Golden(inputs, {"action": action})), Tolerance(), 4)
