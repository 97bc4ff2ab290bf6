"""Several kinds of segments in interleaved rounds: each round runs forwards and then backwards.

So each kind is measured twice in a round, and a drift of the machine affects all kinds alike. How far the two differ is the
noise of that kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from pillion_bench.percentiles import Nanoseconds, percentiles_us, relative_difference

SEGMENTS_OF_KIND: Final = 2
"""Segments of a kind in a round."""


def order(kinds: Sequence[str], rounds: int) -> Iterator[str]:
    """Yields the kind of each segment."""
    for _ in range(rounds):
        yield from kinds
        yield from reversed(kinds)


class Series:
    """All segments of one kind, in order: samples in ns."""

    def __init__(self) -> None:
        self.segments_ns: list[Nanoseconds] = []

    def p50s_us(self) -> list[float]:
        """Returns the p50 of each segment."""
        return [percentiles_us(segment)["p50"] for segment in self.segments_ns]

    def p50s_us_of_rounds(self) -> list[float]:
        """Returns the mean of the two p50s of each round."""
        p50s_us = self.p50s_us()
        pairs = zip(p50s_us[::SEGMENTS_OF_KIND], p50s_us[1::SEGMENTS_OF_KIND], strict=True)
        return [(first + second) / 2 for first, second in pairs]

    def noise(self) -> float:
        """Returns how far the two p50s of a round differ, as a share of their mean: the largest of all rounds."""
        return round(largest_difference(self.p50s_us()), 4)

    def figures(self) -> dict[str, Any]:
        """Returns the count and the percentiles of all segments together."""
        samples_ns = np.concatenate(self.segments_ns)
        return {"n": len(samples_ns), **percentiles_us(samples_ns)}


def largest_difference(values: Sequence[float]) -> float:
    """Returns how far the two values of a round differ, as a share of their mean: the largest of all rounds."""
    pairs = zip(values[::SEGMENTS_OF_KIND], values[1::SEGMENTS_OF_KIND], strict=True)
    return max(relative_difference(*pair) for pair in pairs)
