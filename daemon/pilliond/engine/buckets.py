"""Buckets: the row counts that an engine is bound to and warmed for."""

from __future__ import annotations


def buckets_for(rows_max: int) -> list[int]:
    """Powers of two, and `rows_max` itself."""
    powers = [1 << exponent for exponent in range(rows_max.bit_length())]
    return sorted({rows for rows in powers if rows < rows_max} | {rows_max})
