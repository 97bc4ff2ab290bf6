"""Compares what a shadow would have answered with what was answered: counts distance and agreement in the shadow page."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pillion_artifacts.card.golden_pairs import is_equal
from pillion_artifacts.card.model_card import Tolerance
from pillion_protocol import Spec, TensorSpec
from pilliond.engine.interface import Array
from pilliond.ipc import shadow_page as cell
from pilliond.ipc.shadow_page import DISTANCE_BUCKETS, OUTPUTS, ShadowPage
from pilliond.limits import SHADOW_OUTPUTS_MAX
from pilliond.versions.loaded_version import ACTION

_EDGES: Final = np.array(DISTANCE_BUCKETS)
_CELLS_PER_OUTPUT: Final = 3


def is_continuous(tensor: TensorSpec) -> bool:
    """Returns whether two rows of a tensor have a distance; rows of any other tensor are only equal or not."""
    return tensor.space == "Box"


class Comparison:
    """Compares rows of outputs. Continuous actions agree up to `distance_max`; with 0, within `tolerance`.

    Rows of a `Discrete`, `MultiDiscrete` or `MultiBinary` tensor agree if they are equal. The distance of two rows is Euclidean. A
    NaN or an infinity has distance 0 to the same value, and an infinite distance to any other.
    """

    def __init__(self, spec: Spec, tolerance: Tolerance, distance_max: float, page: ShadowPage) -> None:
        self._outputs = spec.outputs[:SHADOW_OUTPUTS_MAX]
        self._tolerance = tolerance
        self._distance_max = distance_max
        self._page = page

    def add(self, live: list[Array], shadow: list[Array]) -> None:
        """Counts rows. `live` was sent, `shadow` would have been; both have one array [rows, …] per output."""
        cells = self._page.cells
        rows = len(live[0])
        is_odd = np.zeros(rows, bool)
        for index, tensor in enumerate(self._outputs):
            sent, other = live[index].reshape(rows, -1), shadow[index].reshape(rows, -1)
            distance = distances(sent, other)
            agreed = self._agreed(tensor, sent, other, distance)
            self._count(OUTPUTS + _CELLS_PER_OUTPUT * index, agreed, distance)
            is_odd |= np.isfinite(sent).all(axis=1) & ~np.isfinite(other).all(axis=1)
            if tensor.name == ACTION:
                cells[cell.AGREED_ROWS] += int(agreed.sum())
                if is_continuous(tensor):
                    self._observe(distance)
        cells[cell.NON_FINITE_ROWS] += int(is_odd.sum())
        cells[cell.ROWS] += rows

    def _agreed(
        self, tensor: TensorSpec, sent: Array, other: Array, distance: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        if not is_continuous(tensor):
            return np.equal(distance, 0.0)
        if tensor.name == ACTION and self._distance_max:
            return np.less_equal(distance, self._distance_max)
        bound = self._tolerance.of(tensor.name)
        allowed = bound.absolute + bound.relative * np.abs(sent.astype(np.float64))
        with np.errstate(invalid="ignore"):
            near = np.abs(other.astype(np.float64) - sent.astype(np.float64)) <= allowed
        close: NDArray[np.bool_] = np.all(near | is_equal(sent, other), axis=1)
        return close

    def _count(self, first: int, agreed: NDArray[np.bool_], distance: NDArray[np.float64]) -> None:
        numbers = self._page.numbers
        finite = distance[np.isfinite(distance)]
        self._page.cells[first] += int(agreed.sum())
        numbers[first + 1] += float(finite.sum())
        numbers[first + 2] = max(numbers[first + 2], float(distance.max(initial=0.0)))

    def _observe(self, distance: NDArray[np.float64]) -> None:
        cells = self._page.cells
        counts = np.bincount(np.searchsorted(_EDGES, distance), minlength=len(_EDGES) + 1)
        for offset in np.flatnonzero(counts).tolist():
            cells[cell.DISTANCE + offset] += int(counts[offset])
        self._page.numbers[cell.DISTANCE_SUM] += float(distance[np.isfinite(distance)].sum())


def distances(sent: Array, other: Array) -> NDArray[np.float64]:
    """Returns the distance of each row of `other` to the same row of `sent`, both [rows, n]. See `Comparison`."""
    with np.errstate(invalid="ignore", over="ignore"):
        apart = other.astype(np.float64) - sent.astype(np.float64)
        apart[is_equal(sent, other)] = 0.0
        length: NDArray[np.float64] = np.sqrt((apart * apart).sum(axis=1))
    return np.nan_to_num(length, nan=np.inf, posinf=np.inf)
