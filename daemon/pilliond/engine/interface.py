"""The interface between the serving loop and an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    is_inline: bool
    strict_rows: int
    """The rows of the only shape that batches run in; 0: a batch runs in the smallest bucket that it fits."""

    service: ServiceTimes
    """How long its batches take, from `submit` or the run's begin to their end. The batch runner observes it."""

    parts: tuple[Engine, ...]
    """The engines of a mixed version, which run the rows of their own versions; empty for any other."""

    replicas: Sequence[Replica]
    """The engines of a version on several devices, each of which runs whole batches; empty for any other."""

    @property
    def kind(self) -> str:
        """The name of what runs the model."""

    @property
    def memories(self) -> list[BatchMemory]:
        """One for each batch that can be in flight at once."""

    @property
    def inputs(self) -> list[Array]:
        """The tensors of one of `memories`, as are `outputs` and `states`: of the first, if that is ready."""

    @property
    def outputs(self) -> dict[str, Array]:
        """Every output by name, see `inputs`."""

    @property
    def states(self) -> list[tuple[Array, Array]]:
        """For each state what a run reads, and what it writes, see `inputs`."""

    @property
    def runs(self) -> list[Callable[[], None]]:
        """`runs[n]()` runs the first n rows of `inputs` and waits for the end. It may raise `EngineError`."""

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

    def choose(self, rows: int) -> BatchMemory:
        """Returns that one of `free`, which is not empty, in which so many rows are to run."""

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


class Replica(Engine, Protocol):
    """The engine of a version on one of several devices."""

    def free_ns(self, now_ns: int) -> int:
        """When it has done what is in flight, at the pace of its fastest runs: on the clock of the loop, which says `now_ns`."""


class InlineEngine:
    """What an engine that runs in the serving loop need not do."""

    is_inline = True
    is_ready = True
    parts: tuple[Engine, ...] = ()
    state_rows = None
    states: list[tuple[Array, Array]]
    replicas: Sequence[Replica] = ()

    @property
    def state_row_bytes(self) -> int:
        """As `Engine.state_row_bytes`."""
        return sum(before[0].nbytes for before, _ in self.states)

    def choose(self, rows: int) -> BatchMemory:
        """Raises `NotImplementedError`: its only memory is always free."""
        raise NotImplementedError

    def submit(self, memory: BatchMemory, rows: int) -> None:
        """Raises `NotImplementedError`."""
        raise NotImplementedError

    def collect(self, memory: BatchMemory) -> None:
        """Raises `NotImplementedError`."""
        raise NotImplementedError

    def release(self, memory: BatchMemory) -> None:
        """Raises `NotImplementedError`."""
        raise NotImplementedError
