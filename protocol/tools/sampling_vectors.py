"""What the daemon draws for a seed and a step: `sampling.json`.

Computed from `protocol/README.md` alone, in plain integers and `math`, so that the daemon's code can be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

_U64 = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15


def mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _U64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _U64
    return value ^ (value >> 31)


def next_seed(seed: int) -> int:
    return mix((seed + _GAMMA) & _U64) & (2**63 - 1)


def bits(seed: int, step: int, draw: int) -> int:
    key = mix((mix(seed) + (step + 1) * _GAMMA) & _U64)
    return mix((key + (draw + 1) * _GAMMA) & _U64)


def uniform(seed: int, step: int, draw: int) -> float:
    return (float(bits(seed, step, draw) >> 12) + 0.5) * 2.0**-52


def categorical(logits: Sequence[float], seed: int, step: int) -> tuple[int, float]:
    scores = [value - math.log(-math.log(uniform(seed, step, draw))) for draw, value in enumerate(logits)]
    chosen = scores.index(max(scores))
    highest = max(logits)
    return chosen, logits[chosen] - highest - math.log(sum(math.exp(value - highest) for value in logits))


def gaussian(mean: Sequence[float], log_std: Sequence[float], seed: int, step: int) -> tuple[list[float], float]:
    drawn = []
    density = 0.0
    for index, (centre, width) in enumerate(zip(mean, log_std, strict=True)):
        radius = math.sqrt(-2.0 * math.log(uniform(seed, step, 2 * index)))
        normal = radius * math.cos(2.0 * math.pi * uniform(seed, step, 2 * index + 1))
        drawn.append(centre + math.exp(width) * normal)
        density += -0.5 * normal**2 - width - 0.5 * math.log(2.0 * math.pi)
    return drawn, density


def squashed(mean: Sequence[float], log_std: Sequence[float], seed: int, step: int) -> tuple[list[float], float]:
    drawn, density = gaussian(mean, log_std, seed, step)
    tangents = [math.tanh(value) for value in drawn]
    return tangents, density - sum(math.log(1.0 - value**2) for value in tangents)


def sampling() -> dict[str, Any]:
    """Returns what the daemon draws for a seed and a step."""
    counters = [(0, 0, 0), (7, 0, 0), (7, 0, 1), (7, 1, 0), (8, 0, 0), (2**63 - 1, 1_000, 5)]
    logits = [0.5, -1.25, 2.0, 0.0]
    steps = [(7, step) for step in range(8)] + [(8, 0), (123_456_789, 3)]
    mean, log_std = [0.0, 1.0, -2.0], [0.0, -1.0, 0.5]
    return {
        "mix": [{"value": str(value), "mixed": str(mix(value))} for value in (0, 1, 7, 2**63, _U64)],
        "next_seed": [{"seed": str(seed), "next": str(next_seed(seed))} for seed in (0, 7, 8, 2**63 - 1)],
        "uniform": [
            {"seed": str(seed), "step": step, "draw": draw, "bits": str(bits(seed, step, draw)),
             "uniform": uniform(seed, step, draw)}
            for seed, step, draw in counters
        ],
        "categorical": [
            {"logits": logits, "start": 0, "seed": str(seed), "step": step, "action": chosen, "log_probability": log_p}
            for seed, step in steps
            for chosen, log_p in [categorical(logits, seed, step)]
        ],
        "gaussian": [
            {"mean": mean, "log_std": log_std, "low": [-1.0], "high": [1.0], "seed": str(seed), "step": step,
             "drawn": drawn, "action": [min(1.0, max(-1.0, value)) for value in drawn], "log_probability": log_p}
            for seed, step in steps[:4]
            for drawn, log_p in [gaussian(mean, log_std, seed, step)]
        ],
        "squashed_gaussian": [
            {"mean": mean, "log_std": log_std, "low": [-2.0], "high": [4.0], "seed": str(seed), "step": step,
             "drawn": drawn, "action": [-2.0 + 0.5 * (value + 1.0) * 6.0 for value in drawn], "log_probability": log_p}
            for seed, step in steps[:4]
            for drawn, log_p in [squashed(mean, log_std, seed, step)]
        ],
    }  # fmt: skip
