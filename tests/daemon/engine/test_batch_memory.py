"""Batch buffers: the check for finite numbers, and the views of each row range."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pillion_protocol import TensorSpec
from pillion_protocol.specs import DType
from pilliond.engine.batch_memory import BatchViews, finite_values, is_finite

ROWS = 4


@pytest.mark.parametrize("elements", [3, 100])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_single_non_finite_number_is_found(dtype: DType, elements: int, bad: float) -> None:
    array = np.ones((ROWS, elements), dtype)
    values = finite_values([TensorSpec("observation", dtype, [elements], finite=True)], [array])
    assert is_finite(values)
    array[ROWS - 1, elements - 1] = bad
    assert not is_finite(values)


@pytest.mark.parametrize("elements", [3, 100])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_finite_numbers_whose_sum_overflows_count_as_finite(dtype: DType, elements: int) -> None:
    array = np.full((ROWS, elements), np.finfo(dtype).max, dtype)
    with np.errstate(over="ignore"):
        assert is_finite(finite_values([TensorSpec("observation", dtype, [elements], finite=True)], [array]))


def test_integers_and_tensors_that_need_not_be_finite_are_not_checked() -> None:
    spec = [TensorSpec("image", "uint8", [3]), TensorSpec("velocity", "float32", [3], finite=False)]
    assert finite_values(spec, [np.zeros((ROWS, 3), np.uint8), np.full((ROWS, 3), math.nan, np.float32)]) == []


def test_adjacent_batch_views_cover_the_buffers() -> None:
    inputs, outputs = bytearray(12), bytearray(24)
    views = BatchViews([(memoryview(inputs), 3)], [(memoryview(outputs), 2), (memoryview(outputs)[12:], 1)])
    views.make(0, 1).inputs[0][:] = b"abc"
    views.make(1, 3).inputs[0][:] = b"defghijkl"
    assert inputs == b"abcdefghijkl"
    assert [len(view) for view in views.make(1, 3).outputs] == [6, 3]
    assert views.get((2, 2)) is None
    assert views.get((1, 3)) is not None
