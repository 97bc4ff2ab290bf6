"""Percentiles in microseconds of samples in nanoseconds, by an HdrHistogram of three digits."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pillion_bench.limits import LATENCY_NS_MAX, SAMPLES_ABOVE_MIN

Nanoseconds = NDArray[np.int64]
"""int64 [samples]"""

QUANTILES: Final = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9}

_UNIT_NS: Final = 10
_HIGHEST_UNITS: Final = LATENCY_NS_MAX // _UNIT_NS
_DIGITS: Final = 3


def nanoseconds(data: bytes) -> Nanoseconds:
    """Returns the int64 samples that a worker sent as bytes."""
    return np.frombuffer(data, np.int64)


def percentiles_us(values_ns: Nanoseconds) -> dict[str, float]:
    """Returns p50, p90, p99 and p99.9 of `values_ns`; zeros if there are no values."""
    if not len(values_ns):
        return dict.fromkeys(QUANTILES, 0.0)
    histogram = histogram_of(values_ns)
    scale = _UNIT_NS / 1_000
    return {name: round(histogram.get_value_at_percentile(at) * scale, 2) for name, at in QUANTILES.items()}


def histogram_of(values_ns: Nanoseconds) -> Any:
    """Returns an `HdrHistogram` of `values_ns` in units of 10 ns. A value below one unit counts as one unit."""
    from hdrh.histogram import HdrHistogram

    histogram = HdrHistogram(1, _HIGHEST_UNITS, _DIGITS)
    units = np.clip((np.asarray(values_ns) + _UNIT_NS // 2) // _UNIT_NS, 1, _HIGHEST_UNITS)
    for value, count in zip(*np.unique(units, return_counts=True), strict=True):
        histogram.record_value(int(value), int(count))
    return histogram


def is_supported(name: str, count: int) -> bool:
    """Returns whether `count` samples are enough for that percentile."""
    # The subtraction absorbs rounding: 1,000 samples must support p99.
    return count * (100.0 - QUANTILES[name]) / 100.0 >= SAMPLES_ABOVE_MIN - 1e-9


def relative_difference(first: float, second: float) -> float:
    """Returns |first - second| as a share of their mean; 0 if both are 0."""
    mean = (first + second) / 2
    return abs(first - second) / mean if mean else 0.0
