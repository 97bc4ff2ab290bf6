"""Seeds: the numbers that an episode's actions are drawn from."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

from pillion.errors import InvalidObservationError

SEED_BITS: Final = 62


def random_seeds(count: int) -> list[int]:
    """Seeds nobody can guess, for those who do not care which."""
    return [secrets.randbits(SEED_BITS) for _ in range(count)]


def checked_seeds(seeds: Sequence[int], count: int) -> list[int]:
    """`count` seeds as the wire takes them; raises `InvalidObservationError`."""
    checked = [int(seed) for seed in seeds]
    if len(checked) != count:
        raise InvalidObservationError(f"seeds: expected {count}, got {len(checked)}")
    for seed in checked:
        if not 0 <= seed < 2**63:
            raise InvalidObservationError(f"seed: expected 0 to 2^63 - 1, got {seed}")
    return checked
