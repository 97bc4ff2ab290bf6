"""Buckets: the row counts that an engine is bound to, warmed for and measured with."""

from __future__ import annotations

from typing import Final

WARM_UP_RUNS: Final = 3
"""Runs of each bucket before READY: the first allocates, the second plans memory, the third is like all later ones."""


def buckets_for(rows_max: int) -> list[int]:
    """Powers of two, and `rows_max` itself."""
    powers = [1 << exponent for exponent in range(rows_max.bit_length())]
    return sorted({rows for rows in powers if rows < rows_max} | {rows_max})


def service_buckets(rows_max: int, strict_rows: int) -> list[int]:
    """The row counts whose service times are told apart.

    An engine with a strict shape runs it once for every `strict_rows` rows, so its time depends on the number of runs.
    """
    if not strict_rows:
        return buckets_for(rows_max)
    return [runs * strict_rows for runs in buckets_for(-(-rows_max // strict_rows))]
