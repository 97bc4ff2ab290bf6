"""Weights as safetensors: 8 bytes with the length of a JSON header, the header, then the raw tensors.

An own reader, because the interpreters that workers run in need not have the `safetensors` package. The format is
described at https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from pillion_worker.errors import EngineError
from pillion_worker.limits import RANK_MAX, WEIGHTS_HEADER_BYTES_MAX
from pillion_worker.tensors import Array, elements

_LENGTH_BYTES: Final = 8
_METADATA: Final = "__metadata__"
_BFLOAT16: Final = "BF16"
_DTYPES: Final = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    _BFLOAT16: "<u2",
}


def read_weights(model: bytes | memoryview) -> dict[str, Array]:
    """Returns the tensors by name, as views of the bytes that cannot be written to.

    numpy has no bfloat16: such tensors are returned as float32, which holds each of their values exactly, in memory of
    their own. Raises `EngineError` if the bytes are not a whole safetensors file, with each byte in one tensor.
    """
    length = int.from_bytes(model[:_LENGTH_BYTES], "little")
    begin = _LENGTH_BYTES + length
    if length > WEIGHTS_HEADER_BYTES_MAX or begin > len(model):
        raise EngineError(
            f"weights: expected a safetensors header of at most {WEIGHTS_HEADER_BYTES_MAX} bytes, got {length} in a "
            f"file of {len(model)}"
        )
    header = _read_header(bytes(model[_LENGTH_BYTES:begin]))
    data = memoryview(model)[begin:]
    places = sorted((_place(name, entry), name) for name, entry in header.items())
    at = 0
    for (first, last), name in places:
        if first != at:
            raise EngineError(f"weights: tensor {name!r}: expected its data at {at}, got {first}")
        at = last
    if at != len(data):
        raise EngineError(f"weights: expected {at} bytes of tensors, got {len(data)}")
    return {name: _array(data[slice(*_place(name, entry))], entry) for name, entry in header.items()}


def _read_header(text: bytes) -> dict[str, Mapping[str, Any]]:
    try:
        header = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise EngineError(f"weights: expected a safetensors header of JSON: {error}") from None
    if not isinstance(header, dict):
        raise EngineError("weights: expected a safetensors header with an object")
    return {name: entry for name, entry in header.items() if name != _METADATA}


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name stands twice")
    return fields


def _place(name: str, entry: Mapping[str, Any]) -> tuple[int, int]:
    """Where the data of a tensor begins and ends; checks all that its entry says."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise EngineError(f"weights: tensor {name!r}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise EngineError(f"weights: tensor {name!r}: expected a dtype of {', '.join(_DTYPES)}, got {dtype!r}")
    if not _are_sizes(shape) or len(shape) > RANK_MAX:
        raise EngineError(f"weights: tensor {name!r}: expected a shape of at most {RANK_MAX} axes, got {shape!r}")
    size = elements(shape) * np.dtype(_DTYPES[dtype]).itemsize
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != size:
        raise EngineError(f"weights: tensor {name!r}: expected offsets {size} bytes apart, got {offsets!r}")
    return offsets[0], offsets[1]


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)


def _array(data: memoryview, entry: Mapping[str, Any]) -> Array:
    array = _view(data, _DTYPES[entry["dtype"]], entry["shape"])
    if entry["dtype"] == _BFLOAT16:
        # The upper half of a float32.
        array = (array.astype(np.uint32) << 16).view(np.float32)
    elif not array.flags.aligned:
        array = array.copy()
    array.flags.writeable = False
    return array


def _view(data: memoryview, dtype: str, shape: list[int]) -> Array:
    try:
        # Some versions of numpy make no array of an empty buffer.
        return np.frombuffer(data, dtype).reshape(shape) if data else np.zeros(shape, dtype)
    except ValueError as error:
        raise EngineError(f"weights: shape {shape}: {error}") from None
