"""Converts observations to frames and frames to outputs, by the session's spec. Hot path."""

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
    """A `TensorSpec` as numpy objects, for the hot path."""

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
        self._single = self._observation[0] if len(self._observation) == 1 else None

    def encode(self, observation: Observation, rows: int | None) -> list[bytes | memoryview]:
        """Returns the tensor frames of an observation. Takes and raises the same as `arrays`."""
        return [array.tobytes() for array in self.arrays(observation, rows)]

    def arrays(self, observation: Observation, rows: int | None) -> list[Array]:
        """Returns the arrays of an observation in the spec's order and dtypes.

        If `rows` is None, each array has the spec's shape; otherwise it has a leading axis of `rows`. Raises
        `InvalidObservationError` for a missing or unknown name, a wrong shape, or a dtype whose conversion would lose
        more than precision.
        """
        if self._single is not None and not isinstance(observation, Mapping):
            return [_checked(self._single, observation, rows)]
        if not isinstance(observation, Mapping):
            raise InvalidObservationError(
                f"expected a mapping of {', '.join(tensor.name for tensor in self._observation)}, "
                f"got {type(observation).__name__}"
            )
        unknown = observation.keys() - {tensor.name for tensor in self._observation}
        missing = [tensor.name for tensor in self._observation if tensor.name not in observation]
        if unknown or missing:
            expected = ", ".join(tensor.name for tensor in self._observation)
            raise InvalidObservationError(f"expected observations {expected}, got {', '.join(observation) or 'none'}")
        return [_checked(tensor, observation[tensor.name], rows) for tensor in self._observation]

    def decode(self, frames: list[bytes | memoryview], rows: int | None) -> dict[str, Array]:
        """Returns the outputs in `frames` by name, as copies. The caller has checked their sizes."""
        leading = () if rows is None else (rows,)
        return {
            tensor.name: np.frombuffer(frame, tensor.wire_dtype).reshape(leading + tensor.shape).copy()
            for tensor, frame in zip(self._outputs, frames, strict=True)
        }

    def frame_bytes(self, rows: int | None) -> list[int]:
        """Returns the bytes of each observation frame of an act with `rows` rows."""
        return [tensor.row_bytes * (1 if rows is None else rows) for tensor in self._observation]

    def single_form(self, rows: int | None) -> tuple[tuple[int, ...] | None, np.dtype[Any]]:
        """Returns the shape and dtype of an array that needs no conversion. No shape if the spec has several observations."""
        tensor = self._observation[0]
        leading = () if rows is None else (rows,)
        return None if self._single is None else leading + tensor.shape, tensor.wire_dtype

    def output_bytes(self, rows: int | None) -> list[int]:
        """Returns the bytes of each output frame of an action with `rows` rows."""
        return [tensor.row_bytes * (1 if rows is None else rows) for tensor in self._outputs]

    def action_form(self, rows: int | None) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Returns the shape and dtype of the first output, the action."""
        tensor = self._outputs[0]
        return tensor.shape if rows is None else (rows, *tensor.shape), tensor.wire_dtype


def _checked(tensor: _Tensor, value: ArrayLike, rows: int | None) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InvalidObservationError(
            f"observation {tensor.name!r}: cannot be converted to an array: {error}"
        ) from None
    expected = tensor.shape if rows is None else (rows, *tensor.shape)
    if array.shape == expected and array.dtype == tensor.wire_dtype:
        return array
    if array.shape != expected:
        raise InvalidObservationError(
            f"observation {tensor.name!r}: expected shape {list(expected)}, got {list(array.shape)}"
        )
    if not np.can_cast(array.dtype, tensor.dtype, "same_kind"):
        raise InvalidObservationError(
            f"observation {tensor.name!r}: expected {tensor.dtype}, got {array.dtype}, which cannot be converted"
        )
    converted = array.astype(tensor.wire_dtype)
    if array.dtype.kind in "iu" and not np.array_equal(converted, array):
        raise InvalidObservationError(
            f"observation {tensor.name!r}: expected values that {tensor.dtype} can hold, got {array.dtype} values that it "
            "cannot"
        )
    return converted
