"""Specs, tensor frames and texts: `spec.json`, `tensors.json` and `texts.json`."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import msgspec

from example_values import DICTIONARY, INSTRUCTED, LUNAR_LANDER, SMALL, SMALL_BY_HAND, plain_number
from pillion_protocol import Spec, TensorSpec, encode_spec

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
        ("an image and texts", INSTRUCTED, ""),
        (
            "a space from the future",
            Spec([TensorSpec("x", "uint8", [3], "Orbit")], [TensorSpec("action", "float32")]),
            "",
        ),
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


def texts() -> dict[str, list[dict[str, Any]]]:
    """Returns texts with the bytes of their row, rows that are no texts, and texts that fit into no row.

    The bytes are written down by hand: no code of ours encodes them.
    """
    good: list[tuple[str, str, int, int, str]] = [
        ("ASCII, then zeros up to the room", "pick up", 0, 10, "7069636b2075700000 00"),
        ("a text that fills its room", "cup", 3, 3, "637570"),
        ("an empty text", "", 0, 3, "000000"),
        ("two, three and four bytes for a character", "é猫🤖", 1, 10, "c3a9 e78cab f09fa496 00"),
        ("a byte order mark is a character like others", "\ufeffa", 0, 4, "efbbbf61"),
        ("letter and accent are not joined", "e\u0301", 0, 3, "65cc81"),
        ("spaces and control characters are kept", " a\t\n ", 0, 6, "20 61 09 0a 20 00"),
        ("the greatest code point", "\U0010ffff", 4, 4, "f48fbfbf"),
    ]
    bad_rows: list[tuple[str, int, str]] = [
        ("a byte that UTF-8 never has", 0, "61ff00"),
        ("a character that is cut off by the zeros", 0, "61c300"),
        ("a character that is cut off by the end of the row", 0, "6161c3"),
        ("a row that begins within a character", 0, "a96161"),
        ("an overlong form", 0, "c0af00"),
        ("an overlong zero", 0, "c08000"),
        ("half a surrogate pair", 0, "eda080"),
        ("beyond the greatest code point", 0, "f4908080"),
        ("a letter after the first zero byte", 0, "610062"),
        ("a zero byte, then a letter at the end of the row", 0, "000061"),
        ("nothing, where a byte is required", 1, "000000"),
        ("fewer bytes than are required", 3, "6162 0000"),
    ]
    bad_texts: list[tuple[str, str, int, int]] = [
        ("one byte more than there is room", "cups", 0, 3),
        ("as many characters as bytes, of which one needs two", "cafés", 0, 5),
        ("an empty text, where a byte is required", "", 1, 3),
        ("a zero byte", "a\0b", 0, 3),
        ("a zero byte at the end", "ab\0", 0, 3),
    ]
    return {
        "texts": [
            {"name": name, "text": text, "bytes_min": least, "bytes_max": most, "bytes": bytes.fromhex(row).hex()}
            for name, text, least, most, row in good
        ],
        "bad_rows": [
            {"name": name, "bytes_min": least, "bytes": bytes.fromhex(row).hex()} for name, least, row in bad_rows
        ],
        "bad_texts": [
            {"name": name, "text": text, "bytes_min": least, "bytes_max": most} for name, text, least, most in bad_texts
        ],
    }


def _tensor_spec(tensor: TensorSpec) -> dict[str, Any]:
    return {**msgspec.structs.asdict(tensor), "row_bytes": tensor.row_bytes}
