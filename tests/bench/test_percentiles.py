"""Percentiles are right to three digits, and are printed only with enough samples."""

from __future__ import annotations

import numpy as np
import pytest

from pillion_bench.percentiles import is_supported, percentiles_us, relative_difference
from pillion_bench.tables import latency_cells


def test_percentiles_are_right_to_three_digits() -> None:
    values = np.arange(1, 100_001, dtype=np.int64) * 1_000
    result = percentiles_us(values)
    assert list(result) == ["p50", "p90", "p99", "p99.9"]
    assert result == pytest.approx({"p50": 50_000, "p90": 90_000, "p99": 99_000, "p99.9": 99_900}, rel=2e-3)


def test_zero_and_negative_values_count_as_one_unit() -> None:
    assert percentiles_us(np.array([0, 0, -5], np.int64))["p50"] == pytest.approx(0.01)


def test_percentiles_of_no_values_are_zero() -> None:
    assert set(percentiles_us(np.array([], np.int64)).values()) == {0.0}


def test_a_percentile_needs_ten_samples_above_it() -> None:
    assert [name for name in ("p50", "p90", "p99", "p99.9") if is_supported(name, 1_000)] == ["p50", "p90", "p99"]
    assert latency_cells({"p50": 1.0, "p90": 2.0, "p99": 3.0, "p99.9": 4.0}, 100) == ["1.0", "2.0", "–", "–"]


def test_the_relative_difference_is_a_share_of_the_mean() -> None:
    assert relative_difference(90.0, 110.0) == pytest.approx(0.2)
    assert relative_difference(0.0, 0.0) == 0.0
