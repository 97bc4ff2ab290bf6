"""Observations to frames, frames to outputs, after the spec that the session agreed upon. Hot path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pillion.errors import InvalidObservationError
from pillion_protocol import Spec, TensorSpec

Array = NDArray[Any]
Observation = ArrayLike | Mapping[str, ArrayLike]


class _Tensor:
    """What the hot path needs of a `TensorSpec`, as numpy objects."""

    __slots__ = ("dtype", "name", "row_bytes", "shape", "wire_dtype")

    def __init__(self, spec: TensorSpec) -> None:
        self.name = spec.name
        self.row_bytes = spec.row_bytes
        self.shape = tuple(spec.shape)
        self.dtype = np.dtype(spec.dtype)
        self.wire_dtype = self.dtype.newbyteorder("<")


class TensorCodec:
    """Encodes and decodes the tensors of one spec."""

    def __init__(self, spec: Spec) -> None:
        self._observation = [_Tensor(tensor) for tensor in spec.observation]
        self._outputs = [_Tensor(tensor) for tensor in spec.outputs]
        self._only = self._observation[0] if len(self._observation) == 1 else None

    def encode(self, observation: Observation, rows: int | None) -> list[bytes | memoryview]:
        """The tensor frames of an observation: one row without a row axis (`rows` None), or `rows` of them.

        Raises `InvalidObservationError` for a missing or unknown name, a wrong shape, or a dtype that would lose more than
        precision.
        """
        if self._only is not None and not isinstance(observation, Mapping):
            return [_encode(self._only, observation, rows)]
        if not isinstance(observation, Mapping):
            raise InvalidObservationError(
                f"expected a mapping of {', '.join(tensor.name for tensor in self._observation)}, "
                f"came {type(observation).__name__}"
            )
        unknown = observation.keys() - {tensor.name for tensor in self._observation}
        missing = [tensor.name for tensor in self._observation if tensor.name not in observation]
        if unknown or missing:
            expected = ", ".join(tensor.name for tensor in self._observation)
            raise InvalidObservationError(f"expected observations {expected}, came {', '.join(observation) or 'none'}")
        return [_encode(tensor, observation[tensor.name], rows) for tensor in self._observation]

    def decode(self, frames: list[bytes | memoryview], rows: int | None) -> dict[str, Array]:
        """The outputs in `frames` by name; arrays of their own. The caller has checked their sizes."""
        leading = () if rows is None else (rows,)
        return {
            tensor.name: np.frombuffer(frame, tensor.wire_dtype).reshape(leading + tensor.shape).copy()
            for tensor, frame in zip(self._outputs, frames, strict=True)
        }

    def output_bytes(self, rows: int | None) -> list[int]:
        """The bytes of each output frame of an answer for so many rows."""
        return [tensor.row_bytes * (1 if rows is None else rows) for tensor in self._outputs]

    def decode_first(self, frames: list[bytes | memoryview], rows: int | None) -> Array:
        """The first output alone (the action), as `decode` gives it."""
        tensor = self._outputs[0]
        array: Array = np.frombuffer(frames[0], tensor.wire_dtype).copy()
        return array.reshape(tensor.shape if rows is None else (rows, *tensor.shape))


def _encode(tensor: _Tensor, value: ArrayLike, rows: int | None) -> bytes:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InvalidObservationError(f"observation {tensor.name!r}: no array: {error}") from None
    expected = tensor.shape if rows is None else (rows, *tensor.shape)
    if array.shape != expected:
        raise InvalidObservationError(
            f"observation {tensor.name!r}: expected shape {list(expected)}, came {list(array.shape)}"
        )
    if array.dtype != tensor.wire_dtype:
        if not np.can_cast(array.dtype, tensor.dtype, "same_kind"):
            raise InvalidObservationError(
                f"observation {tensor.name!r}: expected {tensor.dtype}, came {array.dtype}, which does not convert"
            )
        converted = array.astype(tensor.wire_dtype)
        if array.dtype.kind in "iu" and not np.array_equal(converted, array):
            raise InvalidObservationError(f"observation {tensor.name!r}: these {array.dtype} do not fit {tensor.dtype}")
        array = converted
    return array.tobytes()
