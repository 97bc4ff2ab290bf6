"""The observations that a load sends: recorded ones if a recording of the policy ships, else random ones."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pillion_artifacts.card.drawn_texts import draw_texts
from pillion_bench.errors import RecordingError
from pillion_bench.recordings.recording import Recording
from pillion_bench.shipped import recordings
from pillion_protocol import Spec, TensorSpec

_DRAWN_ROWS: Final = 64
_DRAW_SEED: Final = 7


class Observations:
    """Rows of observations and their source. After the last row comes the first again."""

    def __init__(self, arrays: list[NDArray[Any]], source: str) -> None:
        self.source = source
        self.rows = len(arrays[0])
        self._arrays = arrays

    def arrays(self, first: int, rows: int) -> list[NDArray[Any]]:
        """Returns `rows` rows from `first` on: an array [rows, …] for each observation of the spec."""
        indices = np.arange(first, first + rows) % self.rows
        return [array[indices] for array in self._arrays]

    def frames(self, first: int, rows: int) -> list[bytes | memoryview]:
        """Returns the same rows as the tensor frames of an act."""
        return [array.tobytes() for array in self.arrays(first, rows)]


def real_observations(policy: str, spec: Spec) -> Observations:
    """Returns the observations of the policy's first recording that fits `spec`, else random ones."""
    for path in recordings(policy):
        try:
            recording = Recording.load(path)
        except RecordingError:
            continue
        arrays = [recording.observation.get(tensor.name) for tensor in spec.observation]
        fitting = [
            array
            for array, tensor in zip(arrays, spec.observation, strict=True)
            if array is not None and array.dtype == tensor.dtype and list(array.shape[1:]) == list(tensor.shape)
        ]
        if len(fitting) == len(spec.observation):
            return Observations(fitting, f"recording {policy}/{path.name}")
    return drawn_observations(spec)


def drawn_observations(spec: Spec) -> Observations:
    """Returns random observations, the same at each call: uniform within the spec's bounds, normal without; or texts."""
    generator = np.random.default_rng(_DRAW_SEED)
    return Observations([_draw(tensor, generator) for tensor in spec.observation], "drawn from the spec's bounds")


def _draw(tensor: TensorSpec, generator: np.random.Generator) -> NDArray[Any]:
    if tensor.is_text:
        return draw_texts(tensor.text_bytes_min, tensor.shape[0], _DRAWN_ROWS, generator)
    shape = (_DRAWN_ROWS, *tensor.shape)
    dtype = np.dtype(tensor.dtype)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    low, high = _bounds(tensor, dtype)
    if dtype.kind in "iu":
        return generator.integers(low.astype(np.int64), high.astype(np.int64), shape, endpoint=True).astype(dtype)
    is_bounded = np.isfinite(low) & np.isfinite(high)
    uniform = generator.uniform(np.where(is_bounded, low, 0.0), np.where(is_bounded, high, 1.0), shape)
    return np.where(is_bounded, uniform, generator.standard_normal(shape)).astype(dtype)


def _bounds(tensor: TensorSpec, dtype: np.dtype[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns low and high in the tensor's shape. Integers without bounds get 0 and 255, or the dtype's maximum if less."""
    size = math.prod(tensor.shape)
    highest = float(min(255, np.iinfo(dtype).max)) if dtype.kind in "iu" else math.inf
    lowest = 0.0 if dtype.kind in "iu" else -math.inf

    def shaped(bound: list[float], default: float) -> NDArray[np.float64]:
        values = np.asarray(bound or [default], dtype=np.float64)
        return np.broadcast_to(values, (size,)).reshape(tensor.shape)

    return shaped(tensor.low, lowest), shaped(tensor.high, highest)
