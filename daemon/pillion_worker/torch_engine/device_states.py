"""The recurrent states of a version on its device: rows with numbers, as in `state_table`, that never leave the device. Hot path.

A run gathers the rows that it reads, computes, and scatters those that it writes, all on the stream that computes. So a batch
finds what the one before it wrote, although its observations were copied in meanwhile. The table is lost with the process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch

from pillion_worker.runs.interface import DeviceTimes, PipelinedRun
from pillion_worker.runs.state_table import IN_ARENA, START, Numbers
from pillion_worker.tensors import State
from pillion_worker.torch_engine.device import Device

_FIRST_ROWS: Final = 64


class DeviceStates:
    """The table of one version. Row `START` stays zeros."""

    def __init__(self, device: Device, states: Sequence[State]) -> None:
        """Raises `torch.cuda.OutOfMemoryError`."""
        self._device = device
        self._tables = [
            device.zeros((_FIRST_ROWS, *state.shape), torch.from_numpy(np.zeros(0, state.dtype)).dtype)
            for state in states
        ]

    def reserve(self, numbers: Numbers) -> None:
        """Makes room for rows with these numbers. Raises `torch.cuda.OutOfMemoryError`; then all is as it was."""
        rows = len(self._tables[0])
        if not len(numbers) or int(numbers.max()) < rows:
            return
        while rows <= int(numbers.max()):
            rows *= 2
        # Nothing may read a table while it moves. That happens a few times in the life of a worker.
        self._device.synchronize()
        grown = [self._device.zeros((rows, *table.shape[1:]), table.dtype) for table in self._tables]
        for to, table in zip(grown, self._tables):
            to[: len(table)] = table
        self._device.synchronize()
        self._tables = grown

    def gather(self, numbers: torch.Tensor, inputs: Sequence[torch.Tensor]) -> None:
        """Copies rows into the inputs of a run. `numbers` are on the device, shape [rows]; each input [rows, …]."""
        for table, target in zip(self._tables, inputs):
            torch.index_select(table, 0, numbers, out=target)

    def scatter(self, numbers: torch.Tensor, outputs: Sequence[torch.Tensor]) -> None:
        """Copies the outputs of a run into rows."""
        for table, source in zip(self._tables, outputs):
            table.index_copy_(0, numbers, source)
            # What nobody keeps is written there, such as the states of a warm-up.
            table[START].zero_()


class CarriedRun(PipelinedRun):
    """A run that takes its states from the table, or from the arena where the batch says so."""

    def __init__(
        self,
        carried: PipelinedRun,
        explicit: PipelinedRun,
        states: DeviceStates,
        numbers: Sequence[Numbers],
        rows: int,
        failure: Callable[[Exception], Exception],
    ) -> None:
        self._carried = carried
        self._explicit = explicit
        self._states = states
        self._reads, self._writes = (each[:rows] for each in numbers)
        self._mark = numbers[0]
        self._begun = carried
        self._failure = failure

    def begin(self) -> None:
        """As `PipelinedRun.begin`."""
        self._begun = self._explicit
        if self._mark[0] != IN_ARENA:
            self._begun = self._carried
            try:
                self._states.reserve(self._reads)
                self._states.reserve(self._writes)
            except Exception as error:
                raise self._failure(error) from error
        self._begun.begin()

    def is_done(self) -> bool:
        """As `PipelinedRun.is_done`."""
        return self._begun.is_done()

    def finish(self) -> DeviceTimes:
        """As `PipelinedRun.finish`."""
        return self._begun.finish()
