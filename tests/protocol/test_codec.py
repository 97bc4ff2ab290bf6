"""Any bytes are a message or a typed error; every message survives the wire; older and newer peers understand each other."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion_protocol import (
    HEAD_BYTES_MAX,
    Act,
    Action,
    Begin,
    Begun,
    End,
    Ended,
    Error,
    ErrorCode,
    Fallback,
    Goodbye,
    Hello,
    Lease,
    Limits,
    Message,
    MessageType,
    Ping,
    Pong,
    ProtocolError,
    RemoteProtocolError,
    Spec,
    TensorSpec,
    Welcome,
    decode,
    decode_spec,
    encode,
    encode_spec,
)
from pillion_protocol.codec import STRUCTS
from tests.harness import head

unsigned = st.integers(0, 2**63 - 1)
digests = st.binary(min_size=32, max_size=32)
names = st.text(max_size=256)
texts = st.text(max_size=300)
opening = (unsigned, unsigned, unsigned)
fallbacks = st.sampled_from(list(Fallback))
limits = st.builds(Limits, unsigned, unsigned, unsigned)
seeds = st.lists(unsigned, max_size=20)

messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(
        Hello, *opening, unsigned, names, names, names, st.binary(max_size=32), st.booleans(), fallbacks
    ),
    st.builds(
        Welcome, *opening, unsigned, names, names, names, digests, st.binary(max_size=99), digests, limits,
        unsigned, unsigned,
    ),
    st.builds(Begin, *opening, seeds),
    st.builds(Begun, *opening, unsigned, st.lists(st.builds(Lease, names, digests), max_size=3), seeds),
    st.builds(
        Act, *opening, unsigned, unsigned, unsigned, st.booleans(), st.binary(max_size=40), seeds,
        st.text(max_size=64),
    ),
    st.builds(
        Action, *opening, unsigned, unsigned, digests, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
        texts,
    ),
    st.builds(End, *opening, unsigned),
    st.builds(Ended, *opening, unsigned, unsigned),
    st.builds(Ping, *opening),
    st.builds(Pong, *opening),
    st.builds(Error, *opening, texts, texts, texts, texts),
    st.builds(Goodbye, *opening, texts),
)  # fmt: skip

msgpack_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


def decoded_or_refused(data: bytes) -> Message | RemoteProtocolError:
    """Returns the message or the error. Anything else that `decode` raises fails the test."""
    try:
        return decode(data)
    except RemoteProtocolError as error:
        return error


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_remote_protocol_error(data: bytes) -> None:
    decoded_or_refused(data)


@given(st.sampled_from(list(MessageType)), st.lists(msgpack_values, max_size=14))
def test_any_array_after_a_known_type_byte_is_a_message_or_malformed(kind: int, fields: list[Any]) -> None:
    result = decoded_or_refused(head(kind, fields))
    if isinstance(result, RemoteProtocolError):
        assert result.code is ErrorCode.MALFORMED
    else:
        assert type(result) is STRUCTS[MessageType(kind)]


@given(messages, st.data())
def test_a_head_cut_short_is_malformed(message: Message, data: st.DataObject) -> None:
    whole = encode(message)
    cut = data.draw(st.integers(0, len(whole) - 1))
    result = decoded_or_refused(whole[:cut])
    assert isinstance(result, RemoteProtocolError)
    assert result.code is ErrorCode.MALFORMED


@given(messages, st.data())
def test_a_head_with_a_changed_byte_is_a_message_or_a_remote_protocol_error(
    message: Message, data: st.DataObject
) -> None:
    whole = bytearray(encode(message))
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    decoded_or_refused(bytes(whole))


@given(messages)
def test_every_message_survives_encode_and_decode(message: Message) -> None:
    assert decode(encode(message)) == message


@given(messages, st.lists(msgpack_values, min_size=1, max_size=3))
def test_unknown_trailing_fields_are_ignored(message: Message, future: list[Any]) -> None:
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    assert decode(head(encode(message)[0], [*fields, *future])) == message


@given(messages, st.data())
def test_missing_trailing_fields_take_their_defaults(message: Message, data: st.DataObject) -> None:
    described = msgspec.structs.fields(type(message))
    required = sum(field.required for field in described)
    kept = data.draw(st.integers(required, len(described)))
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(message))[:kept]
    result = decode(head(encode(message)[0], fields))
    for index, field in enumerate(described):
        value = getattr(result, field.name)
        if index < kept:
            assert value == getattr(message, field.name)
        elif field.default is not msgspec.NODEFAULT:
            assert value == field.default
        else:
            assert value == []


@given(messages, st.data())
def test_a_message_without_a_required_field_is_malformed(message: Message, data: st.DataObject) -> None:
    required = sum(field.required for field in msgspec.structs.fields(type(message)))
    kept = data.draw(st.integers(0, required - 1))
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(message))[:kept]
    result = decoded_or_refused(head(encode(message)[0], fields))
    assert isinstance(result, RemoteProtocolError)
    assert result.code is ErrorCode.MALFORMED


def test_deep_nesting_is_malformed() -> None:
    result = decoded_or_refused(b"\x09" + b"\x91" * 60_000)
    assert isinstance(result, RemoteProtocolError)
    assert result.code is ErrorCode.MALFORMED


def test_a_head_beyond_the_limit_is_too_large_and_one_at_the_limit_is_read() -> None:
    fits = Begin(1, 2, 3, [0] * (HEAD_BYTES_MAX - 8))
    padding = HEAD_BYTES_MAX - len(encode(fits))
    at_the_limit = encode(Begin(1, 2, 3, [0] * (HEAD_BYTES_MAX - 8 + padding)))
    assert len(at_the_limit) == HEAD_BYTES_MAX
    assert isinstance(decode(at_the_limit), Begin)
    with pytest.raises(RemoteProtocolError) as caught:
        decode(at_the_limit + b"\x00")
    assert caught.value.code is ErrorCode.TOO_LARGE
    assert caught.value.expected == f"at most {HEAD_BYTES_MAX} bytes"
    assert caught.value.actual == f"{HEAD_BYTES_MAX + 1} bytes"


def test_the_text_of_an_error_states_what_was_expected_and_what_it_got() -> None:
    error = ProtocolError(ErrorCode.ROWS_MISMATCH, "wrong number of rows", "2", "3")
    assert str(error) == "wrong number of rows; expected 2, got 3"
    assert str(ProtocolError(ErrorCode.INTERNAL, "the engine failed")) == "the engine failed"
    assert str(ProtocolError(ErrorCode.DRAINING, "the daemon stops", actual="an act")) == "the daemon stops; got an act"


def test_the_type_bytes_are_those_of_the_specification() -> None:
    assert [kind.name.lower() for kind in sorted(MessageType)] == [
        "hello", "welcome", "begin", "begun", "act", "action", "end", "ended", "ping", "pong", "error", "goodbye",
    ]  # fmt: skip
    assert sorted(MessageType) == list(range(1, 13))


finite = st.floats(allow_nan=False)
tensor_specs = st.builds(
    TensorSpec,
    st.text(min_size=1, max_size=128),
    st.sampled_from(["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "bool"]),
    st.lists(st.integers(1, 2**31), max_size=4),
    st.sampled_from(["Box", "Discrete", "MultiDiscrete", "MultiBinary"]),
    st.lists(finite, max_size=4),
    st.lists(finite, max_size=4),
    st.booleans(),
)
specs = st.builds(Spec, st.lists(tensor_specs, max_size=4), st.lists(tensor_specs, max_size=4))


@given(specs)
def test_every_spec_survives_encode_and_decode(spec: Spec) -> None:
    assert decode_spec(encode_spec(spec)) == spec


@given(st.binary(max_size=100))
def test_any_bytes_are_a_spec_or_a_msgspec_error(data: bytes) -> None:
    try:
        decode_spec(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return


@given(specs, msgpack_values)
def test_a_spec_with_unknown_later_fields_is_still_read(spec: Spec, future: Any) -> None:
    fields = msgspec.msgpack.decode(encode_spec(spec))
    for tensor in (*fields[0], *fields[1]):
        tensor.append(future)
    assert decode_spec(msgspec.msgpack.encode([*fields, future])) == spec


@pytest.mark.parametrize(
    ("tensor", "row_bytes"),
    [
        (TensorSpec("a", "float32", [8]), 32),
        (TensorSpec("a", "uint8", [4, 84, 84]), 28_224),
        (TensorSpec("a", "int64"), 8),
        (TensorSpec("a", "bool", [3]), 3),
        (TensorSpec("a", "float16", [2, 3]), 12),
    ],
)
def test_the_bytes_of_a_row_follow_from_shape_and_dtype(tensor: TensorSpec, row_bytes: int) -> None:
    assert tensor.row_bytes == row_bytes
