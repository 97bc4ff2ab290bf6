"""The check that integer observations lie within the bounds of their card. Hot path.

Only tensors whose bounds are tighter than their dtype's own range are looked at: an image of uint8 costs nothing.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pillion_artifacts.card.integer_bounds import integer_bounds
from pillion_protocol import TensorSpec

_FEW: Final = 32

_least, _greatest = np.minimum.reduce, np.maximum.reduce


class IntegerRange(msgspec.Struct, frozen=True):
    """The inclusive bounds of one observation: a number each, or an array of the shape of a row."""

    index: int
    """Which observation of the spec."""
    name: str
    low: int | NDArray[Any]
    high: int | NDArray[Any]


class RangedValues(msgspec.Struct, frozen=True):
    """Values of any number of rows, and their range."""

    values: memoryview | NDArray[Any]
    """A flat view that Python compares if they are few. Flat too if all elements have the same range; else [rows, …]."""
    low: Any
    high: Any


class Outside(msgspec.Struct, frozen=True):
    """An integer that is out of bounds, with the bounds of its element."""

    name: str
    row: int
    value: int
    low: int
    high: int


def integer_ranges(spec: list[TensorSpec]) -> list[IntegerRange]:
    """The ranges to check: those of the integer observations that have bounds."""
    found = [(index, tensor, integer_bounds(tensor)) for index, tensor in enumerate(spec)]
    return [
        IntegerRange(index, tensor.name, _side(bounds[0], tensor), _side(bounds[1], tensor))
        for index, tensor, bounds in found
        if bounds is not None
    ]


def ranged_values(ranges: list[IntegerRange], inputs: list[NDArray[Any]]) -> list[RangedValues]:
    """The values of `inputs` (shape [rows, …] each) that have a range, for `is_within`."""
    return [_ranged(inputs[each.index], each.low, each.high) for each in ranges]


def is_within(values: list[RangedValues]) -> bool:
    """Whether all values lie within their ranges now."""
    for part in values:
        numbers, low, high = part.values, part.low, part.high
        if type(numbers) is memoryview:
            if min(numbers) < low or max(numbers) > high:
                return False
        elif type(low) is int and type(high) is int:
            # One pass each, no temporary array.
            if _least(numbers) < low or _greatest(numbers) > high:
                return False
        elif (numbers < low).any() or (numbers > high).any():
            return False
    return True


def first_outside(ranges: list[IntegerRange], inputs: list[NDArray[Any]]) -> Outside | None:
    """The first value of `inputs` (shape [rows, …] each) that is out of its bounds; None if there is none."""
    for each in ranges:
        array = inputs[each.index]
        outside = (array < each.low) | (array > each.high)
        if outside.any():
            position = np.unravel_index(int(outside.argmax()), outside.shape)
            low, high = (np.broadcast_to(side, array.shape)[position] for side in (each.low, each.high))
            return Outside(each.name, int(position[0]), int(array[position]), int(low), int(high))
    return None


def _ranged(array: NDArray[Any], low: int | NDArray[Any], high: int | NDArray[Any]) -> RangedValues:
    if not (isinstance(low, int) and isinstance(high, int)):
        return RangedValues(array, low, high)
    flat = array.reshape(-1)
    # Python compares a few of them sooner than numpy finds the loop for it.
    return RangedValues(flat.data if len(flat) <= _FEW else flat, low, high)


def _side(bounds: list[int], tensor: TensorSpec) -> int | NDArray[Any]:
    """One number if all elements have the same bound."""
    if len(set(bounds)) == 1:
        return bounds[0]
    return np.array(bounds, tensor.dtype).reshape(tensor.shape)
