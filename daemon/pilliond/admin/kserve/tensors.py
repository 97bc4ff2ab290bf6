"""The tensors of `/v2`: from JSON or raw bytes to the rows of a spec, and back."""

from __future__ import annotations

import math
import re
from functools import cache
from http import HTTPStatus
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pillion_protocol import LocalProtocolError, Spec, TensorSpec
from pillion_protocol.specs import DType
from pillion_protocol.texts import encode_text
from pilliond.admin.kserve.errors import KServeError, bad_request
from pilliond.admin.kserve.messages import (
    DATATYPES,
    TEXT_DATATYPE,
    BinarySize,
    InferRequest,
    InputTensor,
    OutputTensor,
    RequestedOutput,
    TensorConfig,
    TensorMetadata,
)
from pilliond.limits import KSERVE_BODY_BYTES_MAX, KSERVE_HEADER_BYTES_MAX, KSERVE_NUMBER_BYTES_MAX

Array = NDArray[Any]

_NESTED: Final = re.compile(rb"\s*\[\s*\[")
_LENGTH_BYTES: Final = 4

_texts_decoder = msgspec.json.Decoder(list[str])


def metadata_of(tensors: list[TensorSpec]) -> list[TensorMetadata]:
    """Returns the tensors of a spec as the protocol describes them."""
    return [TensorMetadata(tensor.name, _datatype(tensor), [-1, *_dimensions(tensor)]) for tensor in tensors]


def config_of(tensors: list[TensorSpec]) -> list[TensorConfig]:
    """Returns the tensors of a spec as Triton's configuration describes them."""
    return [
        TensorConfig(
            tensor.name, "TYPE_STRING" if tensor.is_text else f"TYPE_{DATATYPES[tensor.dtype]}", _dimensions(tensor)
        )
        for tensor in tensors
    ]


def body_bytes_max(spec: Spec, rows_max: int) -> int:
    """Returns the largest body of a request with `rows_max` rows: all numbers in JSON, which is longer than raw bytes."""
    numbers = sum(math.prod(tensor.shape) for tensor in spec.observation) * rows_max
    return min(KSERVE_HEADER_BYTES_MAX + numbers * KSERVE_NUMBER_BYTES_MAX, KSERVE_BODY_BYTES_MAX)


def decode_inputs(request: InferRequest, binary: memoryview, spec: Spec, rows_max: int) -> tuple[int, dict[str, Array]]:
    """Returns the number of rows, and the observations by name, each of shape [rows, …] in the spec's dtype.

    A text is an element of `BYTES`: a string in JSON, or its length (4 bytes, little-endian) and its UTF-8 as binary data.
    `binary` is the data after the JSON: the inputs that are not in it, one after another. Raises `KServeError` (400) for
    anything that does not fit the spec.
    """
    given = _by_name(request.inputs, [tensor.name for tensor in spec.observation], "input")
    for tensor in spec.observation:
        if tensor.name not in given:
            raise bad_request(f"input {tensor.name!r}: expected, got none")
    rows = _rows(request.inputs, rows_max)
    tensors = {tensor.name: tensor for tensor in spec.observation}
    arrays: dict[str, Array] = {}
    offset = 0
    for each in request.inputs:
        tensor = tensors[each.name]
        _check_form(each, tensor, rows)
        size = each.parameters.binary_data_size
        if size is None:
            arrays[each.name] = (_texts_from_json if tensor.is_text else _from_json)(each, tensor, rows)
        else:
            data = binary[offset : offset + size]
            arrays[each.name] = (_texts_from_bytes if tensor.is_text else _from_bytes)(each, tensor, rows, data)
            offset += size
    if offset != len(binary):
        raise bad_request(f"binary data: expected {offset} bytes behind the JSON, got {len(binary)}")
    return rows, arrays


def select_outputs(request: InferRequest, spec: Spec) -> list[RequestedOutput]:
    """Returns the outputs that a request asks for, in its order; all if it names none. Raises `KServeError` (400)."""
    if not request.outputs:
        return [RequestedOutput(tensor.name) for tensor in spec.outputs]
    _by_name(request.outputs, [tensor.name for tensor in spec.outputs], "output")
    for each in request.outputs:
        if each.parameters.classification:
            raise bad_request(f"output {each.name!r}: classification is not supported")
        if each.parameters.shared_memory_region:
            raise bad_request(f"output {each.name!r}: shared memory is not supported")
    return request.outputs


def encode_outputs(
    outputs: dict[str, Array], wanted: list[RequestedOutput], all_binary: bool
) -> tuple[list[OutputTensor], list[bytes]]:
    """Returns the output tensors of the response, and the bytes after its JSON.

    Raises `KServeError` (500) for a number that JSON cannot represent.
    """
    tensors, frames = [], []
    for each in wanted:
        array = outputs[each.name]
        datatype, shape = DATATYPES[array.dtype.name], list(array.shape)
        asked = each.parameters.binary_data
        if all_binary if asked is None else asked:
            frames.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
            tensors.append(OutputTensor(each.name, datatype, shape, BinarySize(len(frames[-1]))))
        else:
            tensors.append(OutputTensor(each.name, datatype, shape, data=_to_json(each.name, array)))
    return tensors, frames


def _to_json(name: str, array: Array) -> list[Any]:
    if not np.isfinite(array).all():
        raise KServeError(
            HTTPStatus.INTERNAL_SERVER_ERROR,
            f"output {name!r} holds a NaN or an infinity, which JSON cannot represent: ask for binary data",
        )
    numbers: list[Any] = array.reshape(-1).tolist()
    return numbers


def _by_name(tensors: list[Any], known: list[str], kind: str) -> set[str]:
    """Returns the names; each must be known and occur once."""
    names: set[str] = set()
    for tensor in tensors:
        if tensor.name not in known:
            raise bad_request(f"{kind} {tensor.name[:80]!r}: expected one of {', '.join(known)}")
        if tensor.name in names:
            raise bad_request(f"{kind} {tensor.name!r}: expected once, got twice")
        names.add(tensor.name)
    return names


def _rows(inputs: list[InputTensor], rows_max: int) -> int:
    """Returns the leading dimension of the first input; `_check_form` compares the others with it."""
    rows = inputs[0].shape[0] if inputs[0].shape else 0
    if not 1 <= rows <= rows_max:
        raise bad_request(f"input {inputs[0].name!r}: expected 1 to {rows_max} rows, got shape {inputs[0].shape}")
    return rows


def _datatype(tensor: TensorSpec) -> str:
    return TEXT_DATATYPE if tensor.is_text else DATATYPES[tensor.dtype]


def _dimensions(tensor: TensorSpec) -> list[int]:
    """The shape of one row, in elements of its datatype."""
    return [] if tensor.is_text else tensor.shape


def _check_form(given: InputTensor, tensor: TensorSpec, rows: int) -> None:
    datatype, shape = _datatype(tensor), [rows, *_dimensions(tensor)]
    if given.datatype != datatype:
        raise bad_request(f"input {tensor.name!r}: expected datatype {datatype}, got {given.datatype[:20]}")
    if given.shape != shape:
        raise bad_request(f"input {tensor.name!r}: expected shape {shape}, got {given.shape}")
    if given.parameters.shared_memory_region:
        raise bad_request(f"input {tensor.name!r}: shared memory is not supported, send the data")
    if bool(bytes(given.data)) == (given.parameters.binary_data_size is not None):
        raise bad_request(f"input {tensor.name!r}: expected either data or binary_data_size")


def _from_bytes(given: InputTensor, tensor: TensorSpec, rows: int, data: memoryview) -> Array:
    expected, announced = rows * tensor.row_bytes, given.parameters.binary_data_size
    if announced != expected or len(data) != expected:
        raise bad_request(
            f"input {tensor.name!r}: expected {expected} bytes of binary data, got {len(data)} (binary_data_size {announced})"
        )
    array: Array = np.frombuffer(data, np.dtype(tensor.dtype).newbyteorder("<")).reshape(rows, *tensor.shape)
    if tensor.dtype == "bool" and array.view(np.uint8).max() > 1:
        raise bad_request(f"input {tensor.name!r}: expected bytes 0 and 1")
    return array


def _from_json(given: InputTensor, tensor: TensorSpec, rows: int) -> Array:
    shape = (rows, *tensor.shape)
    depth = len(shape) if _NESTED.match(given.data) else 1
    try:
        # A number beyond the float's range becomes an infinity, which the data path refuses.
        with np.errstate(over="ignore"):
            array: Array = np.array(_decoder(tensor.dtype, depth).decode(given.data), tensor.dtype)
    except msgspec.MsgspecError as error:
        raise bad_request(f"input {tensor.name!r}: data: {error}") from None
    except OverflowError:
        raise bad_request(f"input {tensor.name!r}: expected {given.datatype}, got a number beyond it") from None
    except ValueError:
        raise bad_request(
            f"input {tensor.name!r}: expected data of shape {list(shape)}, got lists of several lengths"
        ) from None
    if array.shape != shape and (array.ndim != 1 or array.size != math.prod(shape)):
        raise bad_request(f"input {tensor.name!r}: expected data of shape {list(shape)}, got {list(array.shape)}")
    return array.reshape(shape)


def _texts_from_json(given: InputTensor, tensor: TensorSpec, rows: int) -> Array:
    try:
        texts = _texts_decoder.decode(given.data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise bad_request(f"input {tensor.name!r}: data: {error}") from None
    return _text_rows(texts, tensor, rows)


def _texts_from_bytes(given: InputTensor, tensor: TensorSpec, rows: int, data: memoryview) -> Array:
    """Raises `KServeError` (400) unless `data` is one length and so many bytes of UTF-8 for each row."""
    announced = given.parameters.binary_data_size
    texts: list[str] = []
    offset = 0
    while offset < len(data) and len(texts) <= rows:
        begin = offset + _LENGTH_BYTES
        offset = begin + int.from_bytes(data[offset:begin], "little")
        try:
            texts.append(str(data[begin:offset], "utf-8"))
        except UnicodeDecodeError as error:
            raise bad_request(f"input {tensor.name!r}, row {len(texts)}: expected UTF-8, got {error.reason}") from None
    if offset != announced or len(data) != announced:
        raise bad_request(
            f"input {tensor.name!r}: expected {rows} lengths of {_LENGTH_BYTES} bytes, each with as many bytes of text "
            f"behind it, got {len(data)} bytes (binary_data_size {announced})"
        )
    return _text_rows(texts, tensor, rows)


def _text_rows(texts: list[str], tensor: TensorSpec, rows: int) -> Array:
    if len(texts) != rows:
        raise bad_request(f"input {tensor.name!r}: expected {rows} texts, got {len(texts)}")
    encoded = []
    for row, text in enumerate(texts):
        try:
            encoded.append(encode_text(text, tensor.text_bytes_min, tensor.shape[0]))
        except LocalProtocolError as error:
            raise bad_request(
                f"input {tensor.name!r}, row {row}: expected {error.expected}, got {error.actual}"
            ) from None
    array: Array = np.frombuffer(b"".join(encoded), np.uint8).reshape(rows, -1)
    return array


@cache
def _decoder(dtype: DType, depth: int) -> msgspec.json.Decoder[Any]:
    """Returns a decoder of lists, nested `depth` deep, of numbers in the range of the dtype."""
    kind = np.dtype(dtype).kind
    numbers: Any = {"f": float, "b": bool}.get(kind) or _integers(dtype)
    for _ in range(depth):
        numbers = list[numbers]
    return msgspec.json.Decoder(numbers)


def _integers(dtype: str) -> Any:
    bounds = np.iinfo(dtype)
    # msgspec's bounds are signed 64-bit integers. NumPy refuses numbers beyond a uint64.
    return Annotated[int, msgspec.Meta(ge=int(bounds.min), le=int(bounds.max) if dtype != "uint64" else None)]
