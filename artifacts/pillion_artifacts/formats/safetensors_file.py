"""Inspects a safetensors file: a JSON header, and the bytes of its tensors one after the other without a gap."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from pillion_artifacts.errors import UNREADABLE, InvalidArtifactError
from pillion_artifacts.formats.declared_tensor import DeclaredTensor
from pillion_artifacts.limits import SAFETENSORS_HEADER_BYTES_MAX

_LENGTH_BYTES: Final = 8
_METADATA: Final = "__metadata__"
_DTYPES: Final = {
    "BOOL": ("bool", 1), "U8": ("uint8", 1), "I8": ("int8", 1), "U16": ("uint16", 2), "I16": ("int16", 2),
    "U32": ("uint32", 4), "I32": ("int32", 4), "U64": ("uint64", 8), "I64": ("int64", 8),
    "F16": ("float16", 2), "BF16": ("bfloat16", 2), "F32": ("float32", 4), "F64": ("float64", 8),
}  # fmt: skip


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor in the header. `data_offsets` counts from the end of the header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes with these first bytes may be safetensors. Needs its first nine."""
    return head[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{" and _header_bytes(head) + _LENGTH_BYTES <= size


def inspect_safetensors(view: memoryview, what: str) -> list[DeclaredTensor]:
    """Reads the header, and no tensor. Raises `InvalidArtifactError` unless the header accounts for every byte once."""
    length = _header_bytes(bytes(view[:_LENGTH_BYTES]))
    if len(view) < _LENGTH_BYTES or length > min(len(view) - _LENGTH_BYTES, SAFETENSORS_HEADER_BYTES_MAX):
        raise InvalidArtifactError(
            f"{what}: expected safetensors with a header of at most {SAFETENSORS_HEADER_BYTES_MAX} bytes, "
            f"got a file of {len(view)} bytes that names {length}"
        )
    entries = _entries(view[_LENGTH_BYTES : _LENGTH_BYTES + length], what)
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        end = _check_entry(name, entry, end, what)
    size = len(view) - _LENGTH_BYTES - length
    if end != size:
        raise InvalidArtifactError(f"{what}: expected {end} bytes of tensors by its header, got {size}")
    return [DeclaredTensor(name, _DTYPES[entry.dtype][0], list(entry.shape)) for name, entry in entries.items()]


def _header_bytes(head: bytes) -> int:
    return int.from_bytes(head[:_LENGTH_BYTES], "little")


def _entries(header: memoryview, what: str) -> dict[str, _Entry]:
    try:
        fields = msgspec.json.decode(header, type=dict[str, Any])
        msgspec.convert(fields.pop(_METADATA, {}), dict[str, str])
        return msgspec.convert(fields, dict[str, _Entry])
    except UNREADABLE as error:
        raise InvalidArtifactError(f"{what}: expected the header of safetensors, got {error}") from None


def _check_entry(name: str, entry: _Entry, begin: int, what: str) -> int:
    """The end of a tensor that must begin at `begin`."""
    if entry.dtype not in _DTYPES:
        raise InvalidArtifactError(f"{what}: {name!r}: expected one of {', '.join(_DTYPES)}, got {entry.dtype!r}")
    if any(length < 0 for length in entry.shape):
        raise InvalidArtifactError(f"{what}: {name!r}: expected a shape, got {entry.shape}")
    expected = (begin, begin + math.prod(entry.shape) * _DTYPES[entry.dtype][1])
    if entry.data_offsets != expected:
        raise InvalidArtifactError(
            f"{what}: {name!r}, {entry.dtype} {entry.shape}: expected the bytes from {expected[0]} to {expected[1]}, "
            f"got those from {entry.data_offsets[0]} to {entry.data_offsets[1]}"
        )
    return expected[1]
