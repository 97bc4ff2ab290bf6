"""Converts observations to frames and frames to outputs, by the session's spec. Hot path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pillion.errors import InvalidObservationError
from pillion.limits import TEXTS_KEPT_BYTES_MAX
from pillion_protocol import LocalProtocolError, Spec, TensorSpec
from pillion_protocol.texts import encode_text

Array = NDArray[Any]
Observation = ArrayLike | Mapping[str, Any]
"""One array or text, or several by name. The values are `ArrayLike` too, but a type checker infers `object` for a dictionary
of arrays and texts."""

TEXT_KINDS: Final = "OTU"
"""The kinds of numpy's dtypes that can hold texts: objects, variable and fixed strings."""


class _Tensor:
    """A `TensorSpec` as numpy objects, for the hot path."""

    __slots__ = ("dtype", "name", "row_bytes", "shape", "wire_dtype")

    def __init__(self, spec: TensorSpec) -> None:
        self.name = spec.name
        self.row_bytes = spec.row_bytes
        self.shape = tuple(spec.shape)
        self.dtype = np.dtype(spec.dtype)
        self.wire_dtype = self.dtype.newbyteorder("<")

    def array(self, value: ArrayLike, rows: int | None) -> Array:
        """Returns an observation as an array that can be sent. Takes and raises the same as `TensorCodec.arrays`."""
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise InvalidObservationError(
                f"observation {self.name!r}: cannot be converted to an array: {error}"
            ) from None
        expected = self.shape if rows is None else (rows, *self.shape)
        if array.shape == expected and array.dtype == self.wire_dtype:
            return array
        if array.shape != expected:
            raise InvalidObservationError(
                f"observation {self.name!r}: expected shape {list(expected)}, got {list(array.shape)}"
            )
        if not np.can_cast(array.dtype, self.dtype, "same_kind"):
            raise InvalidObservationError(
                f"observation {self.name!r}: expected {self.dtype}, got {array.dtype}, which cannot be converted"
            )
        converted = array.astype(self.wire_dtype)
        if array.dtype.kind in "iu" and not np.array_equal(converted, array):
            raise InvalidObservationError(
                f"observation {self.name!r}: expected values that {self.dtype} can hold, got {array.dtype} values that it "
                "cannot"
            )
        return converted


class _Text(_Tensor):
    """An observation of text. It keeps the texts that it has encoded: most episodes send the same prompt at each step."""

    __slots__ = ("_bytes_min", "_kept", "_kept_bytes")

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__(spec)
        self._bytes_min = spec.text_bytes_min
        self._kept: dict[str | tuple[str, ...], Array] = {}
        self._kept_bytes = 0

    def array(self, value: ArrayLike, rows: int | None) -> Array:
        if isinstance(value, np.ndarray) and value.dtype.kind in TEXT_KINDS:
            value = value.tolist()
        texts: str | tuple[str, ...]
        if isinstance(value, str):
            if rows is not None:
                raise self._invalid(f"{rows} texts", "a single str")
            texts = value
        elif isinstance(value, list | tuple) and len(value) == len(each := tuple(_only_texts(value))):
            if len(each) != rows:
                raise self._invalid(
                    "a str" if rows is None else f"{rows} texts", f"a {type(value).__name__} of {len(each)}"
                )
            texts = each
        elif isinstance(value, np.ndarray) and value.dtype == np.uint8:
            return super().array(value, rows)
        else:
            raise self._invalid(
                f"{'a str' if rows is None else f'{rows} texts'}, or an array of uint8 with their encoded rows",
                _kind_of(value),
            )
        array = self._kept.get(texts)
        return self._encoded(texts) if array is None else array

    def _encoded(self, texts: str | tuple[str, ...]) -> Array:
        encoded = []
        for row, text in enumerate((texts,) if isinstance(texts, str) else texts):
            try:
                encoded.append(encode_text(text, self._bytes_min, self.row_bytes))
            except LocalProtocolError as error:
                where = "" if isinstance(texts, str) else f" in row {row}"
                raise self._invalid(error.expected, f"{error.actual}{where}") from None
        array = np.frombuffer(b"".join(encoded), np.uint8)
        array = array if isinstance(texts, str) else array.reshape(len(texts), -1)
        if self._kept_bytes + array.nbytes > TEXTS_KEPT_BYTES_MAX:
            self._kept.clear()
            self._kept_bytes = 0
        if array.nbytes <= TEXTS_KEPT_BYTES_MAX:
            self._kept[texts] = array
            self._kept_bytes += array.nbytes
        return array

    def _invalid(self, expected: str, actual: str) -> InvalidObservationError:
        return InvalidObservationError(f"observation {self.name!r}: expected {expected}, got {actual}")


class TensorCodec:
    """Encodes and decodes the tensors of one spec."""

    def __init__(self, spec: Spec) -> None:
        self._observation = [_Text(tensor) if tensor.is_text else _Tensor(tensor) for tensor in spec.observation]
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

        A text is a `str`, or `rows` of them as a list, tuple or array. It may also be an array of uint8 that holds encoded
        rows. A text that is too long or too short, or holds a zero byte, raises too.
        """
        if self._single is not None and not isinstance(observation, Mapping):
            return [self._single.array(observation, rows)]
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
        return [tensor.array(observation[tensor.name], rows) for tensor in self._observation]

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


def _kind_of(value: object) -> str:
    """What was given as text; of a list, the first element that is none."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    kind = type(value).__name__
    if isinstance(value, list | tuple):
        row, other = next((row, each) for row, each in enumerate(value) if not isinstance(each, str))
        return f"a {kind} with {type(other).__name__} in row {row}"
    return kind


def _only_texts(values: Sequence[Any]) -> Iterator[str]:
    return (value for value in values if isinstance(value, str))
