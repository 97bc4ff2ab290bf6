"""Slots on the daemon's side: shared memory that a client of the lane writes its observations into.

The client can write at any moment. So an engine never reads a slot: the rows are copied once, lengths and offsets are
the daemon's own, and the generation is checked again after the copy.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import TYPE_CHECKING, Final

from pillion_protocol.slots import SLOTS, SlotLayout, read_generation

if TYPE_CHECKING:
    from pilliond.versions.loaded_version import Version

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Slot:
    """One slot: views of its parts."""

    __slots__ = ("observations", "outputs", "view")

    def __init__(self, view: memoryview, layout: SlotLayout) -> None:
        self.view = view
        self.observations = layout.observations(view)
        self.outputs = layout.outputs(view) if layout.outputs_in_slot else []

    def generation(self) -> int:
        """The generation that the client says it has written; 0 while it is writing."""
        generation: int = read_generation(self.view)[0]
        return generation


class SlotRegion:
    """The slots of one episode group. Owns their memory, which is granted to one connection; `revoke` ends the grant."""

    __slots__ = ("descriptor", "slots")

    def __init__(self, layout: SlotLayout) -> None:
        self.descriptor = os.memfd_create("pillion-slots", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, layout.region_bytes)
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _SEALS)
            mapped = mmap.mmap(self.descriptor, layout.region_bytes)
            self.slots = [Slot(view, layout) for view in layout.slots(memoryview(mapped))]
        except BaseException:
            os.close(self.descriptor)
            raise

    def slot(self, number: int) -> Slot | None:
        """The slot with a number from the wire, or None."""
        return self.slots[number - 1] if 1 <= number <= len(self.slots) else None

    def revoke(self) -> None:
        """Releases the memory. A waiting act keeps its views until it is answered."""
        if self.slots:
            self.slots = []
            os.close(self.descriptor)


class SlotGrants:
    """Grants memory for slots, `bytes_max` in all."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_granted = 0
        self._bytes_max = bytes_max

    def grant(self, version: Version, rows: int) -> SlotRegion | None:
        """Returns slots for a group of `rows` rows; None if inline is faster, or if the memory is used up."""
        layout = version.slot_layout(rows)
        if not layout.is_worth_it or self.bytes_granted + layout.region_bytes > self._bytes_max:
            return None
        try:
            region = SlotRegion(layout)
        except OSError:
            # No descriptor or no memory is left. The lane works without slots.
            return None
        self.bytes_granted += layout.region_bytes
        return region

    def release(self, region: SlotRegion, version: Version, rows: int) -> None:
        """Ends a grant."""
        if region.slots:
            self.bytes_granted -= version.slot_layout(rows).region_bytes
            region.revoke()


assert SLOTS == 2
