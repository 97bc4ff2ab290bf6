"""The interface between the serving loop and an engine that runs inside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]


class EngineError(Exception):
    """The engine cannot be built from this model, or it failed to run a batch."""


class InlineEngine(Protocol):
    """An engine that runs in the serving loop, on batch buffers that are made once.

    The caller writes the raw bytes of `n` rows into `input_views` (one view per observation, in the order of the
    spec), calls `runs[n]`, and reads rows 0 to n - 1 of `outputs`.
    """

    kind: str
    strict_rows: int
    """The rows of the only shape that batches run in; 0: a batch runs in the smallest bucket that it fits."""

    input_views: list[memoryview]
    inputs: list[Array]
    """The same buffers as arrays, shape [rows_max, …]. With `strict_rows` all buffers may be longer."""

    outputs: dict[str, Array]
    """Every output of the graph by name, shape [rows_max, …]. Each run overwrites them."""

    states: list[tuple[Array, Array]]
    """For each state of a recurrent policy: the buffer that a run reads, and the one that it writes, both of shape
    [rows_max, …]. Empty for other policies."""

    runs: list[Callable[[], None]]
    """`runs[n]()` runs the first n rows of the buffers. It may raise `EngineError`."""

    def bind(self, inputs: list[Array], rows: int) -> Callable[[], None] | None:
        """Returns a function that runs the engine on `inputs` (shape [rows, …]) in place; None if the engine cannot.

        The function reads states from their buffers, as `runs` does, and writes rows 0 to rows - 1 of `outputs`. It may
        raise `EngineError`. `inputs` must outlive it.
        """

    def describe(self) -> dict[str, Any]:
        """A description for operators: kind, version, threads, …"""
