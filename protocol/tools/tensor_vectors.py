"""Specs and tensor frames: `spec.json` and `tensors.json`."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import msgspec

from example_values import DICTIONARY, LUNAR_LANDER, SMALL, SMALL_BY_HAND, plain_number
from pillion_protocol import TensorSpec, encode_spec

_STRUCT_CODES = {
    "float16": "e", "float32": "f", "float64": "d", "int8": "b", "int16": "h", "int32": "i", "int64": "q",
    "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q", "bool": "?",
}  # fmt: skip


def specs() -> list[dict[str, Any]]:
    """Returns spec blobs, their SHA-256, and the bytes of one row of every frame."""
    listed = []
    for name, spec, by_hand in (
        ("two numbers in, one of four actions out", SMALL, SMALL_BY_HAND),
        ("lunar-lander", LUNAR_LANDER, ""),
        ("several observations and outputs", DICTIONARY, ""),
    ):
        data = bytes.fromhex(by_hand) if by_hand else encode_spec(spec)
        listed.append(
            {
                "name": name,
                "by_hand": bool(by_hand),
                "bytes": data.hex(),
                "sha256": hashlib.sha256(data).hexdigest(),
                "observation": [_tensor_spec(tensor) for tensor in spec.observation],
                "outputs": [_tensor_spec(tensor) for tensor in spec.outputs],
            }
        )
    shortest = bytes.fromhex("92 91 92 a178 a5 75696e7438 91 92 a6616374696f6e a7666c6f61743332")
    listed.append(
        {
            "name": "trailing fields left out",
            "by_hand": True,
            "bytes": shortest.hex(),
            "sha256": hashlib.sha256(shortest).hexdigest(),
            "observation": [_tensor_spec(TensorSpec("x", "uint8"))],
            "outputs": [_tensor_spec(TensorSpec("action", "float32"))],
        }
    )
    return listed


def tensors() -> list[dict[str, Any]]:
    """Returns tensor frames: numbers in C order, and the bytes of the frame."""
    listed: list[tuple[str, str, list[int], int, list[Any]]] = [
        ("one row of a vector", "float32", [2], 1, [1.0, -2.5]),
        ("two rows of a vector", "float32", [2], 2, [1.0, -2.5, 0.1, 3e8]),
        ("one row of a scalar: 8 bytes", "int64", [], 1, [3]),
        ("three rows of a scalar", "int64", [], 3, [3, -1, 2**40]),
        ("two rows of a 2x3 matrix, the last axis fastest", "uint8", [2, 3], 2, list(range(12))),
        ("halves", "float16", [3], 1, [1.0, -2.0, 65504.0]),
        ("doubles", "float64", [1], 1, [0.1]),
        ("small and signed", "int8", [2], 1, [-128, 127]),
        ("int16", "int16", [2], 1, [-2, 258]),
        ("int32", "int32", [2], 1, [-2, 16909060]),
        ("uint16", "uint16", [1], 1, [65534]),
        ("uint32", "uint32", [1], 1, [4294967294]),
        ("uint64", "uint64", [1], 1, [2**64 - 2]),
        ("booleans: a byte each, 0 or 1", "bool", [3], 1, [True, False, True]),
    ]
    return [
        {
            "name": name,
            "dtype": dtype,
            "shape": shape,
            "rows": rows,
            "values": [plain_number(value) for value in values],
            "bytes": struct.pack(f"<{len(values)}{_STRUCT_CODES[dtype]}", *values).hex(),
        }
        for name, dtype, shape, rows, values in listed
    ]


def _tensor_spec(tensor: TensorSpec) -> dict[str, Any]:
    return {**msgspec.structs.asdict(tensor), "row_bytes": tensor.row_bytes}
