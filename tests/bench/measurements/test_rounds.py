"""Rounds of A, B, B, A separate an effect from the noise of the machine."""

from __future__ import annotations

import numpy as np
import pytest

from pillion_bench.measurements.rounds import Segment, compare_segments


def of_round(*p50_us: float) -> list[Segment]:
    """Returns a round whose segments have these constant latencies, in µs."""
    names = ("a", "b", "b", "a too")
    values = [np.full(100, round(value * 1_000), np.int64) for value in p50_us]
    return [Segment(name, added_ns) for name, added_ns in zip(names, values, strict=True)]


def test_noise_is_the_largest_difference_between_the_a_segments_of_a_round() -> None:
    noise, effect = compare_segments(of_round(100, 105, 105, 110) + of_round(200, 200, 200, 200))
    assert noise["p50"] == pytest.approx(10 / 105, abs=0.001)
    assert effect["p50"] == pytest.approx(0.0, abs=0.001)


def test_the_effect_is_the_median_of_the_rounds() -> None:
    rounds = of_round(100, 130, 130, 100) + of_round(100, 120, 120, 100) + of_round(100, 900, 900, 100)
    noise, effect = compare_segments(rounds)
    assert noise["p50"] == 0.0
    assert effect["p50"] == pytest.approx(0.3, abs=0.005)
