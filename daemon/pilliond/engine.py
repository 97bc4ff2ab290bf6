"""What the serving loop asks of an engine that runs inside it."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]


class EngineError(Exception):
    """The engine cannot be built from this model, or it failed to run a batch."""


class InlineEngine(Protocol):
    """Runs in the serving loop, on a batch buffer that was made once.

    The caller writes the raw bytes of `n` rows into `input_views` (one view for each observation, in the order of
    the spec), calls `run(n)`, and reads rows 0 to n - 1 of `outputs`.
    """

    kind: str
    input_views: list[memoryview]
    inputs: list[Array]
    """The same buffers as arrays, shape [rows_max, …]."""

    outputs: dict[str, Array]
    """Every output of the graph by name, shape [rows_max, …]; made once, overwritten by each run."""

    def run(self, rows: int) -> None:
        """Runs the first `rows` rows of the buffers; raises `EngineError`."""

    def describe(self) -> dict[str, Any]:
        """What an operator wants to know of it."""
