"""What the serving loop asks of an engine that runs inside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]


class EngineError(Exception):
    """The engine cannot be built from this model, or it failed to run a batch."""


class InlineEngine(Protocol):
    """Runs in the serving loop, on a batch buffer that was made once.

    The caller writes the raw bytes of `n` rows into `input_views` (one view for each observation, in the order of
    the spec), calls `runs[n]`, and reads rows 0 to n - 1 of `outputs`.
    """

    kind: str
    strict_rows: int
    """The rows of the one shape that every batch is run in; 0: a batch is run in the bucket that it fits."""

    input_views: list[memoryview]
    inputs: list[Array]
    """The same buffers as arrays, shape [rows_max, …]; the one shape may make them longer, here as below."""

    outputs: dict[str, Array]
    """Every output of the graph by name, shape [rows_max, …]; made once, overwritten by each run."""

    states: list[tuple[Array, Array]]
    """For each state of a recurrent policy: the buffer that a run reads it from, and the one that it writes the next to,
    both of shape [rows_max, …]. Empty for any other policy."""

    runs: list[Callable[[], None]]
    """By their number, what runs the first so many rows of the buffers; it may raise `EngineError`."""

    def bind(self, inputs: list[Array], rows: int) -> Callable[[], None] | None:
        """What runs the engine on `inputs` (shape [rows, …]) where they lie; None where it cannot.

        States it reads from their buffers, as `runs` does. Its outputs are rows 0 to rows - 1 of `outputs`. It may raise `EngineError`. `inputs` must outlive it.
        """

    def describe(self) -> dict[str, Any]:
        """What an operator wants to know of it."""
