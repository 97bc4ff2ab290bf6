"""Samples actions. Counter-based, so that the sample of a row depends only on its episode seed and step.

The generator is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014): draw k of step t of seed s is mix(mix(mix(s) + (t + 1)·γ) + (k + 1)·γ).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

GAMMA: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)
_SEED_MASK: Final = np.uint64(2**63 - 1)

Floats = NDArray[np.float32] | NDArray[np.float64]


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function, element by element."""
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


def next_seeds(seeds: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The seed of the next episode of each row, if the client names none: mix(seed + γ), 63 bits."""
    return mix(seeds + GAMMA) & _SEED_MASK


def uniforms(seeds: NDArray[np.uint64], steps: NDArray[np.uint64], draws: int) -> NDArray[np.float64]:
    """Numbers in the open interval (0, 1), shape [rows, draws]: (x >> 12) + 0.5, divided by 2^52, which is exact."""
    keys = mix(mix(seeds) + (steps + np.uint64(1)) * GAMMA)
    counters = np.arange(1, draws + 1, dtype=np.uint64) * GAMMA
    bits = mix(keys[:, None] + counters[None, :]) >> np.uint64(12)
    return (bits.astype(np.float64) + 0.5) * 2.0**-52


def sample_categorical(
    logits: Floats, seeds: NDArray[np.uint64], steps: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Indices drawn from softmax(logits) by the Gumbel-max method, and the logarithm of their probability.

    `logits` has shape [rows, n]; returns int64 [rows] and float64 [rows].
    """
    wide = logits.astype(np.float64)
    noise = -np.log(-np.log(uniforms(seeds, steps, wide.shape[1])))
    chosen = np.argmax(wide + noise, axis=1)
    shifted = wide - wide.max(axis=1, keepdims=True)
    normaliser = np.log(np.exp(shifted).sum(axis=1))
    return chosen, shifted[np.arange(len(chosen)), chosen] - normaliser


def sample_diagonal_gaussian(
    mean: Floats, log_std: Floats, seeds: NDArray[np.uint64], steps: NDArray[np.uint64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Samples mean + exp(log_std)·z, z standard normal (Box and Muller), and returns the log-density too.

    `mean` and `log_std` have shape [rows, …]; returns float64 [rows, …], not clipped, and float64 [rows]. Element k
    uses draws 2k and 2k + 1.
    """
    rows = mean.shape[0]
    flat_mean = mean.reshape(rows, -1).astype(np.float64)
    flat_log_std = log_std.reshape(rows, -1).astype(np.float64)
    pairs = uniforms(seeds, steps, 2 * flat_mean.shape[1]).reshape(rows, -1, 2)
    normal = np.sqrt(-2.0 * np.log(pairs[:, :, 0])) * np.cos(2.0 * math.pi * pairs[:, :, 1])
    drawn = flat_mean + np.exp(flat_log_std) * normal
    density = (-0.5 * normal**2 - flat_log_std - 0.5 * math.log(2.0 * math.pi)).sum(axis=1)
    return drawn.reshape(mean.shape), density


def sample_squashed_gaussian(
    mean: Floats,
    log_std: Floats,
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    seeds: NDArray[np.uint64],
    steps: NDArray[np.uint64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Samples as `sample_diagonal_gaussian`, takes the hyperbolic tangent, and scales [-1, 1] to `low` and `high`.

    `mean` and `log_std` have shape [rows, …]; `low` and `high` that of a row, or one number. Returns float64 [rows, …]
    and the log-density in [-1, 1], before scaling, float64 [rows].
    """
    drawn, density = sample_diagonal_gaussian(mean, log_std, seeds, steps)
    size = np.abs(drawn)
    # ln(1 - tanh²), in a form that does not subtract nearly equal numbers
    slope = 2.0 * (math.log(2.0) - size - np.log1p(np.exp(-2.0 * size)))
    density = density - slope.reshape(len(slope), -1).sum(axis=1)
    return low + 0.5 * (np.tanh(drawn) + 1.0) * (high - low), density
