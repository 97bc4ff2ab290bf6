"""The packets of the lane: a whole message in one `SOCK_SEQPACKET` packet. Hot path.

    bytes 0, 1    length of the head, little-endian
    bytes 2 …     the head, then zeros up to byte 128, or for a longer head up to the next multiple of 64
    the rest      the tensors, one after the other, without padding

The receiver divides the rest by the spec: tensor i has `row_bytes[i]` bytes for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pillion_protocol.errors import RemoteProtocolError
from pillion_protocol.limits import HEAD_SPACE_BYTES
from pillion_protocol.messages import ErrorCode

_HEAD_ALIGNMENT_BYTES: Final = 64
_LENGTH_BYTES: Final = 2

Frame = bytes | memoryview
"""One part of a message: its head, or one tensor."""

_SHORT_HEAD_BYTES: Final = HEAD_SPACE_BYTES - _LENGTH_BYTES
"""The longest head whose tensors begin at `HEAD_SPACE_BYTES`."""

# Made once for every short head, so that packing an act or an action only joins.
_PREFIXES: Final = [length.to_bytes(_LENGTH_BYTES, "little") for length in range(_SHORT_HEAD_BYTES + 1)]
_PADDINGS: Final = [bytes(_SHORT_HEAD_BYTES - length) for length in range(_SHORT_HEAD_BYTES + 1)]


def pack(head: Frame, tensors: Sequence[Frame]) -> bytes:
    """Returns the packet of a head and its tensors."""
    length = len(head)
    if length <= _SHORT_HEAD_BYTES:
        return b"".join((_PREFIXES[length], head, _PADDINGS[length], *tensors))
    prefix = length.to_bytes(_LENGTH_BYTES, "little")
    return b"".join((prefix, head, bytes(_tensors_begin(length) - _LENGTH_BYTES - length), *tensors))


def unpack(packet: memoryview, row_bytes: Sequence[int]) -> list[memoryview]:
    """Returns the frames of a packet: its head and its tensors, as views of `packet`.

    If the rest is not whole rows of `row_bytes`, it is returned as one frame, which fits no tensor and is refused later.
    Raises `RemoteProtocolError` (`malformed`) if the packet ends within its head.
    """
    size = len(packet)
    if size < HEAD_SPACE_BYTES:
        raise _cut_short(HEAD_SPACE_BYTES, size)
    length = packet[0] | packet[1] << 8
    begin = HEAD_SPACE_BYTES if length <= _SHORT_HEAD_BYTES else _tensors_begin(length)
    if size <= begin:
        if size < begin:
            raise _cut_short(begin, size)
        return [packet[_LENGTH_BYTES : _LENGTH_BYTES + length]]
    if len(row_bytes) == 1:
        return [packet[_LENGTH_BYTES : _LENGTH_BYTES + length], packet[begin:]]
    return [packet[_LENGTH_BYTES : _LENGTH_BYTES + length], *_divide(packet[begin:], row_bytes)]


def _divide(rest: memoryview, row_bytes: Sequence[int]) -> list[memoryview]:
    rows, left_over = divmod(len(rest), sum(row_bytes) or len(rest) + 1)
    if left_over:
        return [rest]
    tensors = []
    begin = 0
    for size in row_bytes:
        tensors.append(rest[begin : begin + rows * size])
        begin += rows * size
    return tensors


def _cut_short(begin: int, size: int) -> RemoteProtocolError:
    return RemoteProtocolError(
        ErrorCode.MALFORMED, "the packet ends within its head", f"at least {begin} bytes", f"{size} bytes"
    )


def _tensors_begin(head_bytes: int) -> int:
    needed = -(-(head_bytes + _LENGTH_BYTES) // _HEAD_ALIGNMENT_BYTES) * _HEAD_ALIGNMENT_BYTES
    return max(HEAD_SPACE_BYTES, needed)
