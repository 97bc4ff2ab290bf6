"""What a source is to those who compare it with the model that was made of it."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from pillion_artifacts.card.golden_pairs import Arrays


class SourceRun(msgspec.Struct, frozen=True):
    """What a source gave for some rows."""

    outputs: Arrays
    margin: NDArray[np.float64] | None = None
    """By how much the chosen action of each row was better than the next; None where nothing is chosen."""


class SourcePolicy(Protocol):
    """Runs the policy as it was before it was published."""

    def run(self, inputs: Arrays) -> SourceRun:
        """The outputs for observations (and states) of [rows, …] each."""


def margin_of(values: NDArray[Any]) -> NDArray[np.float64]:
    """How far the greatest of each row is above the second, relative to their size; [rows, n] to [rows]."""
    if values.shape[1] < 2:
        return np.full(len(values), np.inf)
    best = np.sort(values.astype(np.float64), axis=1)[:, -2:]
    margins: NDArray[np.float64] = (best[:, 1] - best[:, 0]) / np.maximum(1.0, np.abs(values).max(axis=1))
    return margins
