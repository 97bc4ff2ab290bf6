"""Reads protobuf messages without a library: their fields in order, by number (https://protobuf.dev/programming-guides/encoding).

Every function raises `IndexError` or `ValueError` if the bytes are no message.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_INT64_SIGN = 1 << 63

Field = tuple[int, int | memoryview]


def fields(view: memoryview) -> Iterator[Field]:
    """The fields of a message: varints as numbers, all others as views of their bytes."""
    position = 0
    while position < len(view):
        key, position = _varint(view, position)
        number, wire_type = key >> 3, key & 7
        if number == 0:
            raise ValueError(f"field number 0 at byte {position}")
        if wire_type == _VARINT:
            value, position = _varint(view, position)
            yield number, value
            continue
        size = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(wire_type)
        if wire_type == _LENGTH:
            size, position = _varint(view, position)
        if size is None or position + size > len(view):
            raise ValueError(f"field {number} at byte {position} reaches beyond the end")
        yield number, view[position : position + size]
        position += size


def submessages(view: memoryview, wanted: int) -> Iterator[memoryview]:
    """The fields with the number `wanted` that hold bytes."""
    return (value for number, value in fields(view) if number == wanted and isinstance(value, memoryview))


def merged(view: memoryview, wanted: int) -> memoryview | None:
    """The message in the field `wanted`; None if there is none. If it is there more than once, loaders merge the parts."""
    parts = list(submessages(view, wanted))
    if len(parts) > 1:
        return memoryview(b"".join(parts))
    return parts[0] if parts else None


def text(view: memoryview, wanted: int) -> str:
    """The text in the field `wanted`, empty if there is none; the last one counts."""
    found = ""
    for value in submessages(view, wanted):
        found = bytes(value).decode()
    return found


def texts(view: memoryview, wanted: int) -> list[str]:
    """All texts in the repeated field `wanted`."""
    return [bytes(value).decode() for value in submessages(view, wanted)]


def number(view: memoryview, wanted: int) -> int:
    """The number in the field `wanted`, 0 if there is none; the last one counts."""
    found = 0
    for field, value in fields(view):
        if field == wanted and isinstance(value, int):
            found = value
    return found


def integers(view: memoryview, wanted: int) -> list[int]:
    """The numbers of the repeated int64 field `wanted`, packed or not."""
    found: list[int] = []
    for field, value in fields(view):
        if field == wanted:
            found.extend([value] if isinstance(value, int) else _packed(value))
    return [signed(value) for value in found]


def signed(value: int) -> int:
    """The int64 that a varint holds."""
    return value - 2 * _INT64_SIGN if value >= _INT64_SIGN else value


def _packed(view: memoryview) -> Iterator[int]:
    position = 0
    while position < len(view):
        value, position = _varint(view, position)
        yield value


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError(f"a number at byte {position} has no end")
