"""The client's side of slots: it writes observations into the memory that the daemon's engine reads. Hot path."""

from __future__ import annotations

import numpy as np

from pillion.tensors import Array
from pillion_protocol import Spec
from pillion_protocol.slots import SLOTS, SlotLayout, write_generation


class Slots:
    """The slots of one episode group of `rows` rows, in the shared memory that its `begun` passed.

    Acts alternate between the slots, because the daemon may still read the slot of the act before. Raises `ValueError` if
    the memory is smaller than the slots of this spec.
    """

    def __init__(self, memory: memoryview, spec: Spec, rows: int) -> None:
        layout = SlotLayout(spec, rows)
        if len(memory) < layout.region_bytes:
            raise ValueError(f"slots: expected {layout.region_bytes} bytes, got {len(memory)}")
        self._views = layout.slots(memory)
        self._observations = [
            [
                np.frombuffer(part, np.dtype(tensor.dtype).newbyteorder("<")).reshape(rows, *tensor.shape)
                for part, tensor in zip(layout.observations(view), spec.observation, strict=True)
            ]
            for view in self._views
        ]
        self._outputs = [layout.outputs(view) for view in self._views]
        self._uses = 0

    def write(self, arrays: list[Array]) -> tuple[int, int]:
        """Writes an act's observations, which the codec has checked. Returns the slot's number and generation."""
        self._uses += 1
        uses = self._uses
        index = uses % SLOTS
        view = self._views[index]
        # 0 while it is being written, so that the daemon refuses a slot that changes while it reads.
        write_generation(view, 0, 0)
        for target, array in zip(self._observations[index], arrays, strict=True):
            np.copyto(target, array)
        write_generation(view, 0, uses)
        return index + 1, uses

    def outputs(self, number: int) -> list[bytes]:
        """Returns copies of the outputs in the slot with this number. Raises `IndexError` if there is no such slot."""
        if number < 1:
            raise IndexError(number)
        return [bytes(part) for part in self._outputs[number - 1]]
