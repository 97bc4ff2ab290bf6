"""The code agrees with the files in `protocol/vectors/`, and they are up to date."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import make_vectors
from pillion.conversation import Conversation
from pillion.tensors import TensorCodec
from pillion_artifacts import Store
from pillion_protocol import (
    ErrorCode,
    LocalProtocolError,
    RemoteProtocolError,
    Spec,
    TensorSpec,
    Welcome,
    decode,
    decode_spec,
    encode,
    encode_spec,
    spec_hash,
)
from pillion_protocol.codec import STRUCTS
from pillion_protocol.texts import encode_text, fault_of_text
from pilliond.engine.sampling import (
    mix,
    next_seeds,
    sample_categorical,
    sample_diagonal_gaussian,
    sample_squashed_gaussian,
    uniforms,
)
from tests.harness import ROOT, STORE

FOLDER = ROOT / "protocol" / "vectors"
NAMES = ("messages", "malformed", "spec", "tensors", "texts", "sampling", "conversation", "lane")


@cache
def vectors(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_bytes())


def named(entries: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(entry, id=entry["name"]) for entry in entries]


def from_plain(value: Any, like: Any) -> Any:
    """Returns a field of a vector file with the type that it has in the message."""
    if isinstance(like, bytes):
        return bytes.fromhex(value["bin"])
    if isinstance(like, msgspec.Struct):
        return type(like)(**{name: from_plain(value[name], getattr(like, name)) for name in like.__struct_fields__})
    if isinstance(like, list):
        assert len(value) == len(like)
        return [from_plain(inner, inner_like) for inner, inner_like in zip(value, like, strict=True)]
    if isinstance(like, int) and not isinstance(like, bool):
        return int(value)
    return value


def test_the_files_are_what_the_generator_makes() -> None:
    made = make_vectors.files()
    assert sorted(made) == sorted(path.name for path in FOLDER.iterdir())
    for name, data in made.items():
        assert (FOLDER / name).read_bytes() == data, f"{name} differs: run python protocol/tools/make_vectors.py"


def test_every_message_type_has_a_vector_written_by_hand() -> None:
    by_hand = {entry["type"] for entry in vectors("messages") if entry["by_hand"]}
    assert by_hand == {struct.__name__.lower() for struct in STRUCTS.values()}


@pytest.mark.parametrize("entry", named(vectors("messages")))
def test_a_head_decodes_to_the_fields_beside_it(entry: dict[str, Any]) -> None:
    message = decode(bytes.fromhex(entry["bytes"]))
    assert type(message).__name__.lower() == entry["type"]
    fields = msgspec.structs.asdict(message)
    assert list(fields) == list(entry["fields"])
    for name, value in fields.items():
        result = from_plain(entry["fields"][name], value)
        assert result == value
        assert type(result) is type(value) or isinstance(value, str)


@pytest.mark.parametrize("entry", named([entry for entry in vectors("messages") if entry["reencodes"]]))
def test_a_message_encodes_to_the_bytes_beside_it(entry: dict[str, Any]) -> None:
    head = bytes.fromhex(entry["bytes"])
    assert encode(decode(head)) == head


def test_the_encoder_writes_most_heads_as_they_were_written_by_hand() -> None:
    entries = [entry for entry in vectors("messages") if entry["by_hand"] and entry["reencodes"]]
    assert {entry["type"] for entry in entries} >= {"hello", "welcome", "begin", "act", "action", "end", "ping"}


@pytest.mark.parametrize("entry", named(vectors("malformed")))
def test_a_head_that_holds_no_message_has_the_error_code_beside_it(entry: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(bytes.fromhex(entry["bytes"]))
    assert caught.value.code == entry["code"]


@pytest.mark.parametrize("entry", named(vectors("spec")))
def test_a_spec_blob_decodes_to_the_tensors_beside_it_and_hashes_to_its_sha256(entry: dict[str, Any]) -> None:
    data = bytes.fromhex(entry["bytes"])
    assert spec_hash(data) == hashlib.sha256(data).digest() == bytes.fromhex(entry["sha256"])
    spec = decode_spec(data)
    for tensors, described in ((spec.observation, entry["observation"]), (spec.outputs, entry["outputs"])):
        assert [{**msgspec.structs.asdict(tensor), "row_bytes": tensor.row_bytes} for tensor in tensors] == described


def test_the_encoder_writes_a_spec_as_it_was_written_by_hand() -> None:
    entry = vectors("spec")[0]
    assert entry["by_hand"]
    assert encode_spec(decode_spec(bytes.fromhex(entry["bytes"]))).hex() == entry["bytes"]


def test_the_lunar_lander_vector_is_the_spec_of_the_policy_that_ships() -> None:
    entry = next(entry for entry in vectors("spec") if entry["name"] == "lunar-lander")
    assert encode_spec(Store(STORE).load("lunar-lander").card.spec()).hex() == entry["bytes"]


@pytest.mark.parametrize("entry", named(vectors("tensors")))
def test_a_tensor_frame_holds_the_numbers_beside_it(entry: dict[str, Any]) -> None:
    tensor = TensorSpec("x", entry["dtype"], entry["shape"])
    codec = TensorCodec(Spec([tensor], [tensor]))
    values = np.array([value if isinstance(value, float) else int(value) for value in entry["values"]])
    if entry["dtype"] == "uint64":
        values = np.array([int(value) for value in entry["values"]], dtype=np.uint64)
    rows = values.astype(entry["dtype"]).reshape(entry["rows"], *entry["shape"])
    frames = codec.encode(rows, entry["rows"])
    assert b"".join(bytes(frame) for frame in frames).hex() == entry["bytes"]
    assert np.array_equal(codec.decode(frames, entry["rows"])["x"], rows)


def test_the_tensor_vectors_cover_every_dtype() -> None:
    spec_dtypes = {"float16", "float32", "float64", "bool"} | {
        f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
    }
    assert {entry["dtype"] for entry in vectors("tensors")} == spec_dtypes


@pytest.mark.parametrize("entry", named(vectors("texts")["texts"]))
def test_a_text_has_the_row_beside_it(entry: dict[str, Any]) -> None:
    row = bytes.fromhex(entry["bytes"])
    assert encode_text(entry["text"], entry["bytes_min"], entry["bytes_max"]) == row
    assert fault_of_text(row, entry["bytes_min"]) is None
    assert row.rstrip(b"\0").decode() == entry["text"]


@pytest.mark.parametrize("entry", named(vectors("texts")["bad_rows"]))
def test_a_row_that_holds_no_text_is_found(entry: dict[str, Any]) -> None:
    row = bytes.fromhex(entry["bytes"])
    assert fault_of_text(row, entry["bytes_min"]) is not None


@pytest.mark.parametrize("entry", named(vectors("texts")["bad_texts"]))
def test_a_text_that_fits_into_no_row_is_not_encoded(entry: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError) as refused:
        encode_text(entry["text"], entry["bytes_min"], entry["bytes_max"])
    assert refused.value.code == ErrorCode.BAD_TEXT


def unsigned(*values: Any) -> Any:
    return np.array([int(value) for value in values], dtype=np.uint64)


def test_the_daemon_mixes_as_in_the_vectors() -> None:
    for entry in vectors("sampling")["mix"]:
        assert int(mix(unsigned(entry["value"]))[0]) == int(entry["mixed"])


def test_the_daemon_derives_seeds_as_in_the_vectors() -> None:
    for entry in vectors("sampling")["next_seed"]:
        assert int(next_seeds(unsigned(entry["seed"]))[0]) == int(entry["next"])


def test_the_daemon_draws_uniform_numbers_as_in_the_vectors() -> None:
    for entry in vectors("sampling")["uniform"]:
        drawn = uniforms(unsigned(entry["seed"]), unsigned(entry["step"]), entry["draw"] + 1)
        assert float(drawn[0, entry["draw"]]) == entry["uniform"]


def test_the_daemon_draws_categories_as_in_the_vectors() -> None:
    entries = vectors("sampling")["categorical"]
    logits = np.array([entry["logits"] for entry in entries])
    seeds = unsigned(*(entry["seed"] for entry in entries))
    steps = unsigned(*(entry["step"] for entry in entries))
    chosen, log_probability = sample_categorical(logits, seeds, steps)
    assert chosen.tolist() == [entry["action"] for entry in entries]
    assert len(set(chosen.tolist())) > 1
    np.testing.assert_allclose(log_probability, [entry["log_probability"] for entry in entries], rtol=1e-12)


def test_the_daemon_draws_gaussian_actions_as_in_the_vectors() -> None:
    entries = vectors("sampling")["gaussian"]
    mean = np.array([entry["mean"] for entry in entries])
    log_std = np.array([entry["log_std"] for entry in entries])
    seeds = unsigned(*(entry["seed"] for entry in entries))
    steps = unsigned(*(entry["step"] for entry in entries))
    drawn, log_probability = sample_diagonal_gaussian(mean, log_std, seeds, steps)
    np.testing.assert_allclose(drawn, [entry["drawn"] for entry in entries], rtol=1e-12)
    np.testing.assert_allclose(log_probability, [entry["log_probability"] for entry in entries], rtol=1e-12)


def test_the_daemon_draws_squashed_gaussian_actions_as_in_the_vectors() -> None:
    entries = vectors("sampling")["squashed_gaussian"]
    mean, log_std, low, high = (np.array([e[key] for e in entries]) for key in ("mean", "log_std", "low", "high"))
    seeds = unsigned(*(entry["seed"] for entry in entries))
    steps = unsigned(*(entry["step"] for entry in entries))
    action, log_probability = sample_squashed_gaussian(mean, log_std, low[0], high[0], seeds, steps)
    np.testing.assert_allclose(action, [entry["action"] for entry in entries], rtol=1e-12)
    # the vectors take the logarithm of a difference, which costs them digits
    np.testing.assert_allclose(log_probability, [entry["log_probability"] for entry in entries], rtol=1e-9)


def test_the_python_client_sends_what_the_conversation_vector_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's side of the conversation, byte for byte, while it receives the daemon's side."""
    monkeypatch.setattr("pillion.conversation.secrets.randbits", lambda _: 6)
    conversation = Conversation("vectors")
    lines = vectors("conversation")
    one, two = (bytes.fromhex(lines[index]["frames"][1]) for index in (4, 8))
    requests: dict[int, Any] = {
        0: conversation.hello,
        2: lambda: conversation.begin([7]),
        4: lambda: conversation.act(1, 1, [one], 0, True),
        6: lambda: conversation.begin([8, 9]),
        8: lambda: conversation.act(2, 2, [two], 5_000, False, b"\x00\x01", [10]),
        10: lambda: conversation.act(3, 1, [one], 0, True),
        14: lambda: conversation.end(1),
        16: lambda: conversation.goodbye("closed"),
    }
    received: Any = None
    for index, line in enumerate(lines):
        frames: Any = [bytes.fromhex(frame) for frame in line["frames"]]
        if index in requests:
            assert requests[index]()[1] == frames
        elif line["from"] == "client":
            assert conversation.pong(received.message) == frames
        else:
            received = conversation.read(frames)
            assert received.tensors == frames[1:]
            if isinstance(received.message, Welcome):
                conversation.opened(received)


def test_the_conversation_holds_every_message_type() -> None:
    assert {line["type"] for line in vectors("conversation")} == {
        struct.__name__.lower() for struct in STRUCTS.values()
    }
    for line in vectors("conversation"):
        message = decode(bytes.fromhex(line["frames"][0]))
        for name, value in msgspec.structs.asdict(message).items():
            assert from_plain(line["fields"][name], value) == value


def test_the_generator_prints_which_file_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_vectors, "FOLDER", tmp_path)
    monkeypatch.setattr("sys.argv", ["make_vectors.py", "--check"])
    assert make_vectors.main() == 1
    monkeypatch.setattr("sys.argv", ["make_vectors.py"])
    assert make_vectors.main() == 0
    monkeypatch.setattr("sys.argv", ["make_vectors.py", "--check"])
    assert make_vectors.main() == 0
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(NAMES)
