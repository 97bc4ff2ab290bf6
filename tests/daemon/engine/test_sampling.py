"""A draw depends only on the episode's seed and step, and follows its distribution."""

from __future__ import annotations

import numpy as np
import pytest

from pilliond.engine.sampling import (
    mix,
    next_seeds,
    sample_categorical,
    sample_diagonal_gaussian,
    sample_squashed_gaussian,
    uniforms,
)

ROWS = 20_000


def seeds(rows: int, first: int = 0) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Returns consecutive seeds, one for each row."""
    return np.arange(first, first + rows, dtype=np.uint64)


def test_mix_is_splitmix64() -> None:
    # The first outputs of SplitMix64 seeded with 1234567, as published with its reference implementation.
    gamma = 0x9E3779B97F4A7C15
    states = np.array([(1_234_567 + gamma * (k + 1)) % 2**64 for k in range(3)], dtype=np.uint64)
    assert mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_row_draws_the_same_action_in_any_batch() -> None:
    logits = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    steps = np.arange(8, dtype=np.uint64)
    together, _ = sample_categorical(logits, seeds(8), steps)
    alone = [sample_categorical(logits[i : i + 1], seeds(8)[i : i + 1], steps[i : i + 1])[0][0] for i in range(8)]
    assert together.tolist() == alone


def test_each_seed_and_step_draws_another_number() -> None:
    zero = np.zeros(1, np.uint64)
    drawn = {
        float(uniforms(np.array([seed], np.uint64), np.array([step], np.uint64), 1)[0, 0])
        for seed in range(50)
        for step in range(50)
    }
    assert len(drawn) == 2_500
    assert 0.0 < uniforms(zero, zero, 1)[0, 0] < 1.0


def test_derived_seeds_differ_and_fit_into_the_wire_format() -> None:
    derived = next_seeds(seeds(1_000))
    assert len(set(derived.tolist())) == 1_000
    assert int(derived.max()) < 2**63


def test_categories_are_drawn_with_their_probabilities() -> None:
    probabilities = np.array([0.1, 0.2, 0.3, 0.4])
    logits = np.tile(np.log(probabilities), (ROWS, 1)).astype(np.float32)
    chosen, log_probability = sample_categorical(logits, seeds(ROWS), np.zeros(ROWS, np.uint64))
    frequencies = np.bincount(chosen, minlength=4) / ROWS
    # Five standard errors of a binomial frequency at this many rows.
    assert frequencies == pytest.approx(probabilities, abs=5 * np.sqrt(0.25 / ROWS))
    assert np.exp(log_probability) == pytest.approx(probabilities[chosen], rel=1e-5)


def test_gaussian_draws_have_the_right_mean_spread_and_density() -> None:
    mean = np.full((ROWS, 2), 3.0, np.float32)
    log_std = np.full((ROWS, 2), np.log(0.5), np.float32)
    drawn, density = sample_diagonal_gaussian(mean, log_std, seeds(ROWS), np.zeros(ROWS, np.uint64))
    assert drawn.mean(axis=0) == pytest.approx([3.0, 3.0], abs=5 * 0.5 / np.sqrt(ROWS))
    assert drawn.std(axis=0) == pytest.approx([0.5, 0.5], rel=0.05)
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 5 / np.sqrt(ROWS)
    expected = (-((drawn - 3.0) ** 2) / (2 * 0.25) - np.log(0.5 * np.sqrt(2 * np.pi))).sum(axis=1)
    assert density == pytest.approx(expected, rel=1e-4)


def test_squashed_gaussian_draws_stay_inside_the_bounds_and_their_density_integrates_to_one() -> None:
    mean, log_std = np.zeros((ROWS, 1), np.float32), np.full((ROWS, 1), -0.5, np.float32)
    low, high = np.array([-3.0]), np.array([5.0])
    action, density = sample_squashed_gaussian(mean, log_std, low, high, seeds(ROWS), np.zeros(ROWS, np.uint64))
    assert ((action > -3.0) & (action < 5.0)).all()
    squashed = 2 * (action[:, 0] + 3.0) / 8.0 - 1.0
    # Over draws from a density, the mean of 1/density inside an interval is the length of the interval.
    inside = np.abs(squashed) < 0.9
    length = np.where(inside, np.exp(-density), 0.0)
    assert length.mean() == pytest.approx(1.8, abs=5 * length.std() / np.sqrt(ROWS))


def test_a_squashed_gaussian_far_outside_the_bounds_has_a_finite_density() -> None:
    far, narrow = np.full((4, 1), 60.0, np.float32), np.full((4, 1), -5.0, np.float32)
    bound = np.array([1.0])
    action, density = sample_squashed_gaussian(far, narrow, -bound, bound, seeds(4), np.zeros(4, np.uint64))
    assert action.tolist() == [[1.0]] * 4
    assert np.isfinite(density).all()
