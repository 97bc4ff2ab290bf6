"""The interface of a source policy, for comparing it with the model made from it."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from pillion_artifacts.card.golden_pairs import Arrays


class SourceRun(msgspec.Struct, frozen=True):
    """The outputs of a source for some rows."""

    outputs: Arrays
    margin: NDArray[np.float64] | None = None
    """How much better the chosen action of each row is than the next best; None without a choice."""


class SourcePolicy(Protocol):
    """The policy in its original framework."""

    def run(self, inputs: Arrays) -> SourceRun:
        """Returns the outputs for observations and states of [rows, …]."""


def margin_of(values: NDArray[Any]) -> NDArray[np.float64]:
    """The difference between the greatest and the second value of each row, relative to their size; [rows, n] to [rows]."""
    if values.shape[1] < 2:
        return np.full(len(values), np.inf)
    best = np.sort(values.astype(np.float64), axis=1)[:, -2:]
    margins: NDArray[np.float64] = (best[:, 1] - best[:, 0]) / np.maximum(1.0, np.abs(values).max(axis=1))
    return margins
