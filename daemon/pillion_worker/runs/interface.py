"""What an engine makes for a batch: a function that runs it to its end, or a run of a device in two halves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

Run = Callable[[], None]
"""Runs one batch to its end. It may raise `EngineError`."""


class DeviceTimes(NamedTuple):
    """How long the parts of a run took, by the clock of its device."""

    copy_in_ns: int
    compute_ns: int
    copy_out_ns: int


class PipelinedRun(ABC):
    """A run of a device in two halves, so that the batches of other memories can be copied while it computes.

    Of the runs of one memory only one has begun at a time. Those of different memories may have begun at once; they
    finish in the order in which they began.
    """

    @abstractmethod
    def begin(self) -> None:
        """Enqueues the run, and does not wait for it; `finish` is due then.

        May raise `EngineError`: then nothing of the run is left on the device, and no `finish` is due.
        """

    @abstractmethod
    def is_done(self) -> bool:
        """Whether `finish` would not wait. Never waits itself, and raises nothing."""

    @abstractmethod
    def finish(self) -> DeviceTimes:
        """Waits for the end of the run that has begun. May raise `EngineError`; the run has ended then, too."""

    def __call__(self) -> None:
        """As any other run: to its end."""
        self.begin()
        self.finish()
