"""Every bound of the wire, in one place.

a packet of the lane = its head, padded to HEAD_SPACE_BYTES, and the tensors
TENSOR_BYTES_MAX     = PACKET_BYTES_MAX - 2 × HEAD_SPACE_BYTES, which leaves room for the head of any action
"""

from __future__ import annotations

from typing import Final

UNSIGNED_MAX: Final = 2**63 - 1
"""The greatest integer of a message: languages without unsigned integers can hold it."""

HEAD_BYTES_MAX: Final = 64 * 1024
"""Bytes in a head. The largest is a begin with a seed for each of several thousand rows."""

HEAD_SPACE_BYTES: Final = 128
"""Where the tensors of a packet begin, if the head has at most 126 bytes. All acts of a lock-step loop do, and all actions
of policies that are not on a device."""

PACKET_BYTES_MAX: Final = 160 * 1024
"""Bytes in a packet of the lane. Linux's default socket buffer (212,992 bytes) holds such a packet whole."""

TENSOR_BYTES_MAX: Final = PACKET_BYTES_MAX - 2 * HEAD_SPACE_BYTES
"""Tensors of this many bytes fit into a packet with any action, and with any act that has no `episode_start`."""

SLOT_BYTES_MIN: Final = 16 * 1024
"""From here on observations, or outputs, travel through a slot. Smaller ones are faster in the packet (`pillion bench
frames`, figures in `bench/README.md`)."""

COPY_BYTES_MAX: Final = 4_096
"""Up to here copying a ZeroMQ frame costs less than making a view of it."""

assert TENSOR_BYTES_MAX > SLOT_BYTES_MIN, "what is too small for a slot must fit into a packet"
