"""The packets of the lane: a whole message in one `SOCK_SEQPACKET` packet. Hot path.

    bytes 0, 1    length of the head, little-endian
    bytes 2 …     the head, then zeros up to byte 128, or where the head is longer up to the next multiple of 64
    the rest      the tensors, one behind the other, without padding

The receiver knows from the spec how the rest is divided: tensor i has `row_bytes[i]` bytes of each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pillion_protocol.errors import RemoteProtocolError
from pillion_protocol.messages import ErrorCode

HEAD_SPACE_BYTES: Final = 128
"""Where tensors begin behind a head of at most 126 bytes, which is every act and action of a lock-step loop."""

PACKET_BYTES_MAX: Final = 160 * 1024
"""What a packet may have; Linux's default socket buffer (212,992 bytes) takes it whole."""

TENSOR_BYTES_MAX: Final = PACKET_BYTES_MAX - 2 * HEAD_SPACE_BYTES
"""Tensors of so many bytes fit behind the head of any act without starts, and of any action."""

_HEAD_ALIGNMENT_BYTES: Final = 64
_LENGTH_BYTES: Final = 2

Frame = bytes | memoryview

SHORT_HEAD_BYTES_MAX: Final = HEAD_SPACE_BYTES - _LENGTH_BYTES
"""Behind a head of up to so many bytes the tensors begin at `HEAD_SPACE_BYTES`."""

_PREFIXES: Final = [length.to_bytes(_LENGTH_BYTES, "little") for length in range(SHORT_HEAD_BYTES_MAX + 1)]
_PADDINGS: Final = [bytes(SHORT_HEAD_BYTES_MAX - length) for length in range(SHORT_HEAD_BYTES_MAX + 1)]


def pack(head: Frame, tensors: Sequence[Frame]) -> bytes:
    """The packet that holds a head and its tensors."""
    length = len(head)
    if length <= SHORT_HEAD_BYTES_MAX:
        return b"".join((_PREFIXES[length], head, _PADDINGS[length], *tensors))
    prefix = length.to_bytes(_LENGTH_BYTES, "little")
    return b"".join((prefix, head, bytes(_tensors_begin(length) - _LENGTH_BYTES - length), *tensors))


def unpack(packet: memoryview, row_bytes: Sequence[int]) -> list[memoryview]:
    """The frames of a packet: the head and its tensors, views of `packet`.

    Where the rest is not whole rows of `row_bytes` it is one frame, which nobody takes for a tensor. Raises
    `RemoteProtocolError` (`malformed`) where there is no whole head.
    """
    size = len(packet)
    if size < HEAD_SPACE_BYTES:
        raise _cut_short(HEAD_SPACE_BYTES, size)
    length = packet[0] | packet[1] << 8
    begin = HEAD_SPACE_BYTES if length <= SHORT_HEAD_BYTES_MAX else _tensors_begin(length)
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
