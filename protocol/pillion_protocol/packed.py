"""Messages that are laid out once as a packet of the lane. Hot path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pillion_protocol.limits import HEAD_SPACE_BYTES

LENGTH_BYTES: Final = 2
"""The bytes of a packet before its head, which hold the head's length."""


class Packed(list[Any]):
    """The frames of a message, already laid out as a packet of the lane. The owner reuses them for the next message."""

    __slots__ = ("packet",)

    packet: bytearray | memoryview


def cut(packet: memoryview, tensor_bytes: Sequence[int]) -> list[memoryview]:
    """Returns the tensors of a packet whose head is short."""
    tensors = []
    begin = HEAD_SPACE_BYTES
    for size in tensor_bytes:
        tensors.append(packet[begin : begin + size])
        begin += size
    return tensors
