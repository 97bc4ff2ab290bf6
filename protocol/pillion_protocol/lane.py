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

_HEAD_ALIGNMENT_BYTES: Final = 64
_LENGTH_BYTES: Final = 2

Frame = bytes | memoryview


def pack(head: bytes, tensors: Sequence[Frame]) -> bytes:
    """The packet that holds a head and its tensors."""
    length = len(head)
    prefix = length.to_bytes(_LENGTH_BYTES, "little")
    return b"".join((prefix, head, bytes(_tensors_begin(length) - _LENGTH_BYTES - length), *tensors))


def unpack(packet: memoryview, row_bytes: Sequence[int]) -> list[Frame]:
    """The frames of a packet: the head and its tensors, all copied out of `packet`.

    Where the rest is not whole rows of `row_bytes` it is one frame, which nobody takes for a tensor. Raises
    `RemoteProtocolError` (`malformed`) where there is no whole head.
    """
    length = int.from_bytes(packet[:_LENGTH_BYTES], "little")
    begin = HEAD_SPACE_BYTES if length <= HEAD_SPACE_BYTES - _LENGTH_BYTES else _tensors_begin(length)
    if len(packet) < begin:
        raise RemoteProtocolError(
            ErrorCode.MALFORMED, "the packet ends within its head", f"at least {begin} bytes", f"{len(packet)} bytes"
        )
    head = bytes(packet[_LENGTH_BYTES : _LENGTH_BYTES + length])
    rest = len(packet) - begin
    if not rest:
        return [head]
    if len(row_bytes) == 1:
        return [head, bytes(packet[begin:])]
    rows, left_over = divmod(rest, sum(row_bytes) or rest + 1)
    if left_over:
        return [head, bytes(packet[begin:])]
    frames: list[Frame] = [head]
    for size in row_bytes:
        frames.append(bytes(packet[begin : begin + rows * size]))
        begin += rows * size
    return frames


def _tensors_begin(head_bytes: int) -> int:
    needed = -(-(head_bytes + _LENGTH_BYTES) // _HEAD_ALIGNMENT_BYTES) * _HEAD_ALIGNMENT_BYTES
    return max(HEAD_SPACE_BYTES, needed)
