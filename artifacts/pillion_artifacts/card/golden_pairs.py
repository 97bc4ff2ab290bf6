"""Golden pairs: observations and the outputs of the policy's source, kept beside the model.

The daemon runs them again on the engine that will serve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pillion_artifacts.card.layers import GOLDEN_NAME
from pillion_artifacts.card.model_card import Bound, Tolerance
from pillion_artifacts.errors import InvalidArtifactError, ParityError

_INPUT: Final = "input."
_OUTPUT: Final = "output."
_FORMAT: Final = {"format": "pillion.golden", "format_version": "1"}

Array = NDArray[Any]
Arrays = dict[str, Array]
Run = Callable[[Arrays], Arrays]
"""Runs a policy: inputs of [rows, …] by name to outputs by name."""


class Golden(msgspec.Struct, frozen=True):
    """Inputs (observations and states) and the source's outputs. All arrays have the same number of rows."""

    inputs: Arrays
    outputs: Arrays

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))

    def part(self, first: int, rows: int) -> Golden:
        """At most `rows` rows, starting at `first`."""
        chosen = slice(first, first + rows)
        return Golden(
            {name: array[chosen] for name, array in self.inputs.items()},
            {name: array[chosen] for name, array in self.outputs.items()},
        )


def encode_golden(golden: Golden) -> bytes:
    """Encodes the pairs as a safetensors file. The same pairs have the same bytes."""
    tensors = {f"{_INPUT}{name}": np.ascontiguousarray(array) for name, array in golden.inputs.items()}
    tensors |= {f"{_OUTPUT}{name}": np.ascontiguousarray(array) for name, array in golden.outputs.items()}
    return save(tensors, _FORMAT)


def decode_golden(data: bytes) -> Golden:
    """Decodes a safetensors file of pairs. Raises `InvalidArtifactError`."""
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InvalidArtifactError(f"{GOLDEN_NAME}: not safetensors: {error}") from None
    parts: dict[str, Arrays] = {_INPUT: {}, _OUTPUT: {}}
    for name, array in tensors.items():
        prefix = next((prefix for prefix in parts if name.startswith(prefix)), None)
        if prefix is None or array.ndim == 0:
            raise InvalidArtifactError(f"{GOLDEN_NAME}: {name}: expected rows of an input or an output")
        parts[prefix][name.removeprefix(prefix)] = array
    golden = Golden(parts[_INPUT], parts[_OUTPUT])
    rows = {len(array) for array in tensors.values()}
    if len(rows) != 1 or not golden.inputs or not golden.outputs:
        raise InvalidArtifactError(
            f"{GOLDEN_NAME}: expected inputs and outputs with the same number of rows, got {rows}"
        )
    return golden


def check_golden(run: Run, golden: Golden, tolerance: Tolerance, rows_max: int) -> None:
    """Runs the golden inputs in batches of at most `rows_max` rows and compares the outputs.

    Skips outputs that `run` does not return. Raises `ParityError` for the first output that differs by more than the
    tolerance; the message has output, row and difference.
    """
    for first in range(0, golden.rows, rows_max):
        part = golden.part(first, rows_max)
        actual = run(part.inputs)
        for name, expected in part.outputs.items():
            if name in actual:
                compare(name, expected, actual[name], tolerance.of(name), first)


def compare(name: str, expected: Array, actual: Array, bound: Bound, first_row: int = 0) -> float:
    """Returns the greatest absolute difference. Raises `ParityError` if it is beyond `bound` in any element."""
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        raise ParityError(
            f"output {name!r}: expected {expected.dtype} {list(expected.shape)}, got {actual.dtype} {list(actual.shape)}"
        )
    if expected.size == 0:
        return 0.0
    wanted, got = expected.reshape(len(expected), -1), actual.reshape(len(actual), -1)
    difference = np.abs(wanted.astype(np.float64) - got.astype(np.float64))
    allowed = bound.absolute + bound.relative * np.abs(wanted.astype(np.float64))
    if expected.dtype.kind != "f":
        allowed = np.zeros_like(difference)
    difference = np.where(is_equal(wanted, got), 0.0, difference)
    # written with `not`, because a comparison with NaN is false
    is_wrong = ~(difference <= allowed)
    if is_wrong.any():
        row, element = (int(index) for index in np.argwhere(is_wrong)[0])
        raise ParityError(
            f"output {name!r}, row {first_row + row}, element {element}: expected {wanted[row, element]!s}, "
            f"got {got[row, element]!s}, which differs by {difference[row, element]:.3g}, "
            f"at most {allowed[row, element]:.3g} is tolerated"
        )
    return float(difference.max())


def is_equal(wanted: Array, got: Array) -> NDArray[np.bool_]:
    """Element-wise equality, where NaN equals NaN."""
    same: NDArray[np.bool_] = wanted == got
    if wanted.dtype.kind == "f":
        same = same | (np.isnan(wanted) & np.isnan(got))
    return same
