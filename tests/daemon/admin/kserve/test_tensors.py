"""Tensors of `/v2`: every dtype is decoded and encoded unchanged, as JSON and as bytes."""

from __future__ import annotations

import math
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from numpy.typing import NDArray
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from pillion_protocol import Spec, TensorSpec
from pillion_protocol.specs import DType
from pilliond.admin.kserve.errors import KServeError
from pilliond.admin.kserve.messages import (
    DATATYPES,
    InferRequest,
    OutputTensor,
    RequestedOutput,
    TensorConfig,
    TensorMetadata,
)
from pilliond.admin.kserve.tensors import body_bytes_max, config_of, decode_inputs, encode_outputs, metadata_of
from pilliond.limits import KSERVE_BODY_BYTES_MAX

Array = NDArray[Any]
DTYPES = get_args(DType)


def request(array: Array, data: Any = None) -> InferRequest:
    """A request with one input: its numbers in the JSON, or (None) after it."""
    given_: dict[str, Any] = {"name": "x", "shape": list(array.shape), "datatype": DATATYPES[array.dtype.name]}
    given_ |= {"parameters": {"binary_data_size": array.nbytes}} if data is None else {"data": data}
    return msgspec.json.decode(msgspec.json.encode({"inputs": [given_]}), type=InferRequest)


def spec_of(array: Array) -> Spec:
    tensor = TensorSpec("x", array.dtype.name, list(array.shape[1:]))  # type: ignore[arg-type]
    return Spec([tensor], [tensor])


@st.composite
def rows(draw: st.DrawFn) -> Array:
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(arrays_of.array_shapes(min_dims=1, max_dims=4, max_side=4))
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    made: Array = draw(arrays_of.arrays(dtype, shape, elements=elements or None))
    return made


@given(rows())
def test_every_dtype_is_decoded_bit_for_bit_from_bytes_flat_and_nested_lists(array: Array) -> None:
    spec = spec_of(array)
    forms = [
        (request(array), memoryview(array.tobytes())),
        (request(array, array.tolist()), memoryview(b"")),
        (request(array, array.reshape(-1).tolist()), memoryview(b"")),
    ]
    for asked, binary in forms:
        count, arrays = decode_inputs(asked, binary, spec, 4)
        assert count == len(array)
        assert (arrays["x"].dtype, arrays["x"].shape) == (array.dtype, array.shape)
        assert arrays["x"].tobytes() == array.tobytes()


@given(rows())
def test_every_dtype_is_encoded_bit_for_bit_as_bytes_and_as_json(array: Array) -> None:
    (binary,), frames = encode_outputs({"x": array}, [RequestedOutput("x")], all_binary=True)
    assert binary.parameters is not None
    assert (binary.parameters.binary_data_size, b"".join(frames)) == (array.nbytes, array.tobytes())
    (reply,), frames = encode_outputs({"x": array}, [RequestedOutput("x")], all_binary=False)
    assert frames == []
    read = msgspec.json.decode(msgspec.json.encode(reply), type=OutputTensor)
    assert read.data is not None
    assert np.array(read.data, array.dtype).reshape(read.shape).tobytes() == array.tobytes()


def test_several_inputs_are_cut_from_the_bytes_in_the_order_of_the_request() -> None:
    spec = Spec([TensorSpec("a", "uint8", [2]), TensorSpec("b", "float32", [])], [])
    asked = msgspec.json.decode(
        b'{"inputs": [{"name": "b", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}},'
        b' {"name": "a", "shape": [2, 2], "datatype": "UINT8", "data": [1, 2, 3, 4]}]}',
        type=InferRequest,
    )
    count, arrays = decode_inputs(asked, memoryview(np.array([5, 6], np.float32).tobytes()), spec, 4)
    assert count == 2
    assert arrays["a"].tolist() == [[1, 2], [3, 4]]
    assert arrays["b"].tolist() == [5.0, 6.0]


@pytest.mark.parametrize(
    ("dtype", "data"),
    [
        ("int8", [128]), ("int8", [-129]), ("uint8", [-1]), ("uint64", [-1]), ("uint64", [2**64]), ("int64", [2**63]),
        ("int32", [0.5]), ("int32", [1.0]), ("bool", [1]), ("float32", [True]), ("float32", [[[1.0]]]),
    ],
)  # fmt: skip
def test_a_number_beyond_the_dtype_is_refused(dtype: str, data: list[Any]) -> None:
    array = np.zeros(1, dtype)
    with pytest.raises(KServeError, match=r"input 'x': (data: E|e)xpected"):
        decode_inputs(request(array, data), memoryview(b""), spec_of(array), 4)


def test_numbers_beyond_float64_and_int64_are_decoded_exactly() -> None:
    numbers = [2**64 - 1, 0, 2**63, 2**53 + 1]
    array = np.array(numbers, np.uint64)
    assert decode_inputs(request(array, numbers), memoryview(b""), spec_of(array), 4)[1]["x"].tolist() == numbers


def test_bytes_of_a_bool_that_are_neither_0_nor_1_are_refused() -> None:
    array = np.zeros(2, bool)
    with pytest.raises(KServeError, match="expected bytes 0 and 1"):
        decode_inputs(request(array), memoryview(b"\1\2"), spec_of(array), 4)


def test_an_output_that_json_cannot_represent_is_refused_as_json_and_sent_as_bytes() -> None:
    array = np.array([1.0, math.nan], np.float32)
    with pytest.raises(KServeError, match="output 'x' holds a NaN or an infinity") as refused:
        encode_outputs({"x": array}, [RequestedOutput("x")], all_binary=False)
    assert refused.value.status == 500
    assert encode_outputs({"x": array}, [RequestedOutput("x")], all_binary=True)[1] == [array.tobytes()]


def test_every_dtype_of_a_spec_has_a_name_that_tritons_client_knows() -> None:
    assert {dtype: np_to_triton_dtype(np.dtype(dtype)) for dtype in DTYPES} == DATATYPES
    assert [each.shape for each in metadata_of([TensorSpec("x", "bool", []), TensorSpec("y", "int8", [2, 3])])] == [
        [-1],
        [-1, 2, 3],
    ]


def test_a_body_may_be_as_long_as_the_rows_of_the_policy_need() -> None:
    small = Spec([TensorSpec("x", "float64", [8])], [])
    numbers = msgspec.json.encode([[-np.pi * 1e-300] * 8] * 256)
    assert len(numbers) < body_bytes_max(small, 256) < 200_000
    assert body_bytes_max(Spec([TensorSpec("x", "uint8", [4, 84, 84])], []), 256) == KSERVE_BODY_BYTES_MAX


# Texts

TEXTS = ["pick up", "é猫", 'a "quoted" \\ text\n', "x" * 24]
TEXT = TensorSpec("x", "uint8", [24], "Text", [1.0])


def text_request(rows: int, size: int | None = None, data: Any = None, **fields: Any) -> InferRequest:
    given_: dict[str, Any] = {"name": "x", "shape": [rows], "datatype": "BYTES", **fields}
    given_ |= {"data": data} if size is None else {"parameters": {"binary_data_size": size}}
    return msgspec.json.decode(msgspec.json.encode({"inputs": [given_]}), type=InferRequest)


def decoded_texts(asked: InferRequest, binary: bytes = b"") -> list[str]:
    count, arrays = decode_inputs(asked, memoryview(binary), Spec([TEXT], []), 8)
    assert arrays["x"].shape == (count, 24)
    assert arrays["x"].dtype == np.uint8
    return [bytes(row).rstrip(b"\0").decode() for row in arrays["x"]]


def test_texts_are_bytes_as_tritons_client_writes_them_or_strings() -> None:
    binary: bytes = serialize_byte_tensor(np.array([text.encode() for text in TEXTS], object)).item()
    assert decoded_texts(text_request(len(TEXTS), len(binary)), binary) == TEXTS
    assert decoded_texts(text_request(len(TEXTS), data=TEXTS)) == TEXTS
    assert metadata_of([TEXT])[0] == TensorMetadata("x", "BYTES", [-1])
    assert config_of([TEXT])[0] == TensorConfig("x", "TYPE_STRING", [])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["a", "b", "c"], "expected 2 texts, got 3"),
        (["a"], "expected 2 texts, got 1"),
        (["a", ""], "row 1: expected at least 1 byte of UTF-8"),
        (["a", "b" * 25], "row 1: expected at most 24 bytes of UTF-8, got 'b.*' of 25 bytes"),
        (["a\0", "b"], "row 0: expected text without zero bytes"),
        (["a", 1], "data: Expected `str`"),
        ([["a"], ["b"]], "data: Expected `str`"),
    ],
)
def test_texts_in_json_that_do_not_fit_are_refused(data: Any, message: str) -> None:
    with pytest.raises(KServeError, match=message) as refused:
        decoded_texts(text_request(2, data=data))
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("binary", "message"),
    [
        (b"\1\0\0\0a", "expected 2 texts, got 1"),
        (b"\1\0\0\0a" * 3, "expected 2 texts, got 3"),
        (b"\1\0\0\0a\2\0\0\0b", "expected 2 lengths of 4 bytes"),
        (b"\1\0\0\0a\xff\xff\xff\xffb", "expected 2 lengths of 4 bytes"),
        (b"\1\0\0\0a\1\0", "expected 2 lengths of 4 bytes"),
        (b"\1\0\0\0a\1\0\0\0\xff", "row 1: expected UTF-8"),
    ],
)
def test_texts_as_bytes_that_do_not_fit_are_refused(binary: bytes, message: str) -> None:
    with pytest.raises(KServeError, match=message) as refused:
        decoded_texts(text_request(2, len(binary)), binary)
    assert refused.value.status == 400


def test_texts_have_no_other_datatype_and_no_further_axis() -> None:
    with pytest.raises(KServeError, match="expected datatype BYTES, got UINT8"):
        decoded_texts(text_request(2, data=["a", "b"], datatype="UINT8"))
    with pytest.raises(KServeError, match=r"expected shape \[2\], got \[2, 1\]"):
        decoded_texts(text_request(2, data=["a", "b"], shape=[2, 1]))
