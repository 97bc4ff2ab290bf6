"""Rounds of A, B, B, A: how a small effect is told apart from the noise of the machine.

A drift of the machine then affects both sides alike. The two A segments of a round come from two daemons that do not
differ, so what they differ by is noise.
"""

from __future__ import annotations

from statistics import median
from typing import Final

import msgspec

from pillion_bench.percentiles import QUANTILES, Nanoseconds, percentiles_us, relative_difference

SEGMENTS: Final = 4
"""Segments of a round: A, B, B and A again."""


class Segment(msgspec.Struct, frozen=True):
    """One measurement of one daemon: the added latency of each act, in ns."""

    daemon: str
    added_ns: Nanoseconds


def compare_segments(segments: list[Segment]) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the A/A noise and the effect of each percentile, as shares.

    Noise: the difference of the two A segments over their mean; the largest of all rounds.
    Effect: how far the B segments' mean lies above the A segments' mean, as a share; the median of all rounds.
    """
    rounds = [segments[first : first + SEGMENTS] for first in range(0, len(segments), SEGMENTS)]
    percentiles = [[percentiles_us(segment.added_ns) for segment in members] for members in rounds]
    noise = {}
    effect = {}
    for name in QUANTILES:
        figures = [[member[name] for member in members] for members in percentiles]
        noise[name] = round(max(relative_difference(before, after) for before, _, _, after in figures), 4)
        effect[name] = round(median(_effect(*members) for members in figures), 4)
    return noise, effect


def _effect(first_a: float, first_b: float, second_b: float, second_a: float) -> float:
    a, b = (first_a + second_a) / 2, (first_b + second_b) / 2
    return (b - a) / a if a else 0.0
