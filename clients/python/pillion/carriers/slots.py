"""Slots on the client's side: observations are written where the daemon's engine reads them. Hot path."""

from __future__ import annotations

import numpy as np

from pillion.tensors import Array
from pillion_protocol import Spec
from pillion_protocol.slots import SLOTS, SlotLayout, write_generation


class Slots:
    """The slots of one handle of `rows` rows, in the shared memory `area` that came with its `begun`.

    They are used in turn, so that what the daemon may still read of the act before is left alone. Raises `ValueError`
    where the area is smaller than the slots of this spec.
    """

    def __init__(self, area: memoryview, spec: Spec, rows: int) -> None:
        layout = SlotLayout(spec, rows)
        if len(area) < layout.area_bytes:
            raise ValueError(f"slots: expected {layout.area_bytes} bytes, got {len(area)}")
        self._views = layout.slots(area)
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
        """Writes an act's observations, arrays that the codec has checked; gives the slot's number and generation."""
        self._uses += 1
        uses = self._uses
        index = uses % SLOTS
        view = self._views[index]
        write_generation(view, 0, 0)
        for place, array in zip(self._observations[index], arrays, strict=True):
            np.copyto(place, array)
        write_generation(view, 0, uses)
        return index + 1, uses

    def outputs(self, number: int) -> list[bytes]:
        """The outputs in the slot with this number; raises `IndexError` where there is none."""
        if number < 1:
            raise IndexError(number)
        return [bytes(part) for part in self._outputs[number - 1]]
