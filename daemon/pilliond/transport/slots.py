"""Slots on the daemon's side: the memory that a client of the lane writes its observations into.

Whoever holds the other end may write at any moment, so nothing read here is trusted twice: lengths and offsets are the
daemon's own, and the generation is looked at again after the rows were read.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np

from pillion_protocol.slots import SLOTS, SlotLayout, read_generation
from pilliond.engine.interface import Array

if TYPE_CHECKING:
    from pilliond.versions.loaded_version import Version

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Slot:
    """One slot: views of its parts, and the engine bound to it where it can read it in place."""

    __slots__ = ("finite_values", "inputs", "observations", "outputs", "run", "view")

    def __init__(self, view: memoryview, layout: SlotLayout, version: Version, rows: int) -> None:
        self.view = view
        self.observations = layout.observations(view)
        self.outputs = layout.outputs(view) if layout.outputs_in_slot else []
        self.inputs: list[Array] = [
            np.frombuffer(data, tensor.dtype).reshape(rows, *tensor.shape)
            for data, tensor in zip(self.observations, version.spec.observation, strict=True)
        ]
        self.finite_values = version.finite_among(self.inputs)
        self.run: Callable[[], None] | None = version.engine.bind(self.inputs, rows)
        """Runs the engine on this slot's rows where they lie; None where they must be copied."""

    def generation(self) -> int:
        """What the client says that it has written; 0 while it is writing."""
        generation: int = read_generation(self.view)[0]
        return generation


class SlotRegion:
    """The slots of one handle. Owns their memory, which is leased to a connection: when that goes, `revoke` ends it."""

    __slots__ = ("descriptor", "slots")

    def __init__(self, layout: SlotLayout, version: Version, rows: int) -> None:
        self.descriptor = os.memfd_create("pillion-slots", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, layout.region_bytes)
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _SEALS)
            mapped = mmap.mmap(self.descriptor, layout.region_bytes)
            self.slots = [Slot(view, layout, version, rows) for view in layout.slots(memoryview(mapped))]
        except BaseException:
            os.close(self.descriptor)
            raise

    def slot(self, number: int) -> Slot | None:
        """The slot with a number from the wire, or None where there is none."""
        return self.slots[number - 1] if 1 <= number <= len(self.slots) else None

    def revoke(self) -> None:
        """Gives the memory back; what still waits keeps its views until it is answered."""
        if self.slots:
            self.slots = []
            os.close(self.descriptor)


class SlotGrants:
    """Who holds how much of the memory for slots, `bytes_max` in all."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_granted = 0
        self._bytes_max = bytes_max

    def grant(self, version: Version, rows: int) -> SlotRegion | None:
        """Slots for a handle of `rows` rows; None where inline is quicker, or where the memory is spent."""
        layout = version.slot_layout(rows)
        if not layout.is_worth_it or self.bytes_granted + layout.region_bytes > self._bytes_max:
            return None
        try:
            area = SlotRegion(layout, version, rows)
        except OSError:
            # No descriptor, or no memory, is left: the lane itself goes on.
            return None
        self.bytes_granted += layout.region_bytes
        return area

    def give_back(self, area: SlotRegion, version: Version, rows: int) -> None:
        """Ends the lease of an area."""
        if area.slots:
            self.bytes_granted -= version.slot_layout(rows).region_bytes
            area.revoke()


assert SLOTS == 2
