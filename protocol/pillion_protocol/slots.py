"""Slots: shared memory for tensors that are too large for a packet of the lane.

A *region* belongs to one episode group and holds `SLOTS` slots. Each slot begins on a page and holds, in this order:

    bytes 0 … 7   the generation, little-endian; 0 while the slot is being written
    from byte 64  the observation tensors, then the output tensors, each beginning on a multiple of 64 bytes

The client writes 0, then the observations, then a generation that it has not used before in this slot. It sends an act
with the slot's number (from 1 on) and the generation. The daemon allocates the memory (a memfd, sealed against
shrinking, growing and further seals) and passes its descriptor with the `begun` (`SCM_RIGHTS`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from pillion_protocol.limits import SLOT_BYTES_MIN
from pillion_protocol.specs import Spec

SLOTS: Final = 2
"""Two: after a time-out the daemon may still read the slot of the last act, so the client writes into the other one."""

_ALIGNMENT_BYTES: Final = 64
_PAGE_BYTES: Final = 4_096
_GENERATION: Final = struct.Struct("<Q")

read_generation: Final = _GENERATION.unpack_from
"""`read_generation(slot)` returns the generation in the slot's first bytes, as a tuple of one."""

write_generation: Final = _GENERATION.pack_into
"""`write_generation(slot, 0, generation)` writes it there."""


class SlotLayout:
    """The sizes and offsets in a region for `rows` rows of `spec`, in bytes."""

    def __init__(self, spec: Spec, rows: int) -> None:
        self.observation_bytes = [tensor.row_bytes * rows for tensor in spec.observation]
        self.output_bytes = [tensor.row_bytes * rows for tensor in spec.outputs]
        sizes = self.observation_bytes + self.output_bytes
        offsets = []
        end = _ALIGNMENT_BYTES
        for size in sizes:
            offsets.append(end)
            end += -(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self._observation_offsets = offsets[: len(spec.observation)]
        self._output_offsets = offsets[len(spec.observation) :]
        self.slot_bytes = -(-end // _PAGE_BYTES) * _PAGE_BYTES
        self.region_bytes = self.slot_bytes * SLOTS
        self.observations_in_slot = sum(self.observation_bytes) >= SLOT_BYTES_MIN
        self.outputs_in_slot = sum(self.output_bytes) >= SLOT_BYTES_MIN

    @property
    def is_worth_it(self) -> bool:
        """Whether observations or outputs of this size travel through a slot."""
        return self.observations_in_slot or self.outputs_in_slot

    def slots(self, region: memoryview) -> list[memoryview]:
        """Returns the slots of a region, as views of it."""
        return [region[index * self.slot_bytes : (index + 1) * self.slot_bytes] for index in range(SLOTS)]

    def observations(self, slot: memoryview) -> list[memoryview]:
        """Returns the part of a slot that holds each observation, in the order of the spec."""
        return _cut(slot, self._observation_offsets, self.observation_bytes)

    def outputs(self, slot: memoryview) -> list[memoryview]:
        """Returns the part of a slot that holds each output, in the order of the spec."""
        return _cut(slot, self._output_offsets, self.output_bytes)


def _cut(slot: memoryview, offsets: Sequence[int], sizes: Sequence[int]) -> list[memoryview]:
    return [slot[offset : offset + size] for offset, size in zip(offsets, sizes, strict=True)]
