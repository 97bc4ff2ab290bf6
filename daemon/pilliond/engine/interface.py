"""The interface between the serving loop and an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from pillion_worker.errors import EngineError
from pilliond.engine.batch_memory import Array, BatchMemory
from pilliond.engine.service_time import ServiceTimes
from pilliond.engine.state_rows import StateRows

__all__ = ["Array", "Engine", "EngineError"]


class Engine(Protocol):
    """Runs batches of one version, in memory that is made once.

    An *inline* engine runs a batch in the serving loop: `runs[n]()` runs the first n rows of its only memory and returns
    when they are done. Any other engine takes a batch with `submit` and says later that it is done.
    """

    kind: str
    is_inline: bool
    strict_rows: int
    """The rows of the only shape that batches run in; 0: a batch runs in the smallest bucket that it fits."""

    memories: list[BatchMemory]
    """One for each batch that can be in flight at once."""
    inputs: list[Array]
    outputs: dict[str, Array]
    states: list[tuple[Array, Array]]
    """The tensors of `memories[0]`, as `runs` read and write them."""

    runs: list[Callable[[], None]]
    """`runs[n]()` runs the first n rows of `memories[0]` and waits for the end. It may raise `EngineError`."""

    service: ServiceTimes
    """How long its batches take, from `submit` or the run's begin to their end. The batch runner observes it."""

    parts: tuple[Engine, ...]
    """The engines of a mixed version, which run the rows of their own versions; empty for any other."""

    @property
    def state_rows(self) -> StateRows | None:
        """The rows of its state table. Then the states of its memories are numbers of such rows, and a batch that was
        submitted took those that it writes. None if the states of its memories are the states themselves.
        """

    @property
    def state_row_bytes(self) -> int:
        """The bytes of one row's recurrent state."""

    @property
    def is_ready(self) -> bool:
        """Whether it runs batches. False while a worker is being replaced, and when it is out."""

    @property
    def free(self) -> list[BatchMemory]:
        """Those that no batch uses now. Empty while the engine is busy or not ready; an inline engine's is always free."""

    def submit(self, memory: BatchMemory, rows: int) -> None:
        """Takes `memory` from `free` and starts a run of its first `rows` rows. Not for inline engines.

        It calls the batch runner's `complete` when the run is done, once for each of the engines that took part.
        """

    def collect(self, memory: BatchMemory) -> None:
        """Makes the results of a run that was submitted and is done readable in `memory`. It may raise `EngineError`."""

    def release(self, memory: BatchMemory) -> None:
        """Puts `memory` back to `free` after its results were read."""

    def describe(self) -> dict[str, Any]:
        """A description for operators: kind, version, threads, …"""


class InlineEngine:
    """What an engine that runs in the serving loop need not do."""

    is_inline = True
    is_ready = True
    parts: tuple[Engine, ...] = ()
    state_rows = None
    states: list[tuple[Array, Array]]

    @property
    def state_row_bytes(self) -> int:
        """As `Engine.state_row_bytes`."""
        return sum(before[0].nbytes for before, _ in self.states)

    def submit(self, memory: BatchMemory, rows: int) -> None:
        """Raises `NotImplementedError`."""
        raise NotImplementedError

    def collect(self, memory: BatchMemory) -> None:
        """Raises `NotImplementedError`."""
        raise NotImplementedError

    def release(self, memory: BatchMemory) -> None:
        """Raises `NotImplementedError`."""
        raise NotImplementedError
