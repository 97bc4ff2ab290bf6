"""Integer observations are checked against the bounds of their card, and only where those say more than the dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion_protocol import TensorSpec
from pillion_protocol.specs import DType
from pilliond.engine.checks.integer_ranges import Outside, first_outside, integer_ranges, is_within, ranged_values


def check(tensor: TensorSpec, array: Any) -> tuple[bool, Outside | None]:
    rows = np.asarray(array, tensor.dtype)
    ranges = integer_ranges([tensor])
    return is_within(ranged_values(ranges, [rows])), first_outside(ranges, [rows])


@pytest.mark.parametrize(
    "tensor",
    [
        TensorSpec("image", "uint8", [3], low=[0], high=[255]),
        TensorSpec("image", "uint8", [3], low=[0] * 3, high=[255] * 3),
        TensorSpec("step", "int64", []),
        TensorSpec("step", "int64", [], low=[-math.inf], high=[math.inf]),
        TensorSpec("step", "int64", [], low=[-(2.0**63)], high=[2.0**63]),
        TensorSpec("step", "int8", [], low=[-1e300], high=[1e300]),
        TensorSpec("switch", "bool", [3], low=[0], high=[1]),
        TensorSpec("velocity", "float32", [3], low=[0], high=[1]),
    ],
)
def test_bounds_that_say_no_more_than_the_dtype_are_not_checked(tensor: TensorSpec) -> None:
    assert integer_ranges([tensor]) == []


@pytest.mark.parametrize("elements", [1, 100])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("bad", [2, 10])
def test_a_single_number_out_of_bounds_is_found(dtype: DType, elements: int, bad: int) -> None:
    tensor = TensorSpec("x", dtype, [elements], low=[3], high=[9])
    array = np.full((4, elements), 9, dtype)
    array[0, 0] = 3
    assert check(tensor, array) == (True, None)
    array[2, -1] = bad
    assert check(tensor, array) == (False, Outside("x", 2, bad, 3, 9))


@pytest.mark.parametrize(("low", "high", "bad"), [([0], [], -1), ([], [9], 10), ([0.5], [], 0), ([], [9.5], 10)])
def test_one_side_is_enough_and_fractions_are_rounded_inwards(
    low: Sequence[float], high: Sequence[float], bad: int
) -> None:
    tensor = TensorSpec("x", "int64", [], low=list(low), high=list(high))
    assert check(tensor, [5, 9, 1])[0]
    is_sound, outside = check(tensor, [5, bad])
    assert not is_sound
    assert outside is not None
    assert (outside.row, outside.value) == (1, bad)


def test_each_element_may_have_bounds_of_its_own() -> None:
    tensor = TensorSpec("dials", "int64", [2], "MultiDiscrete", low=[0, 0], high=[1, 4])
    assert check(tensor, [[1, 4], [0, 0]]) == (True, None)
    assert check(tensor, [[1, 4], [2, 0]]) == (False, Outside("dials", 1, 2, 0, 1))
    assert check(tensor, [[0, 5]]) == (False, Outside("dials", 0, 5, 0, 4))


def test_the_extremes_of_64_bits_are_compared_as_integers() -> None:
    tensor = TensorSpec("x", "uint64", [], low=[0], high=[float(2**53)])
    assert check(tensor, [2**53]) == (True, None)
    assert check(tensor, [2**64 - 1]) == (False, Outside("x", 0, 2**64 - 1, 0, 2**53))


@given(st.lists(st.integers(-128, 127), min_size=1, max_size=80), st.integers(-128, 127), st.integers(-128, 127))
def test_the_check_and_the_reason_agree_for_any_numbers(numbers: list[int], low: int, high: int) -> None:
    is_sound, outside = check(TensorSpec("x", "int8", [], low=[low], high=[high]), numbers)
    expected = next((row for row, number in enumerate(numbers) if not low <= number <= high), None)
    assert is_sound == (expected is None)
    assert (None if outside is None else outside.row) == expected
