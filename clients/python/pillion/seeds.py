"""Seeds: the numbers that determine what an episode draws."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from pillion.errors import InvalidObservationError
from pillion.limits import SEED_BITS


def random_seeds(count: int) -> list[int]:
    """Returns `count` unpredictable seeds, for callers that did not name any."""
    return [secrets.randbits(SEED_BITS) for _ in range(count)]


def checked_seeds(seeds: Sequence[int], count: int) -> list[int]:
    """Returns `seeds` as the wire takes them.

    Raises `InvalidObservationError` unless there are `count` of them, each from 0 to 2^63 - 1.
    """
    checked = [int(seed) for seed in seeds]
    if len(checked) != count:
        raise InvalidObservationError(f"seeds: expected {count}, got {len(checked)}")
    for seed in checked:
        if not 0 <= seed < 2**63:
            raise InvalidObservationError(f"seed: expected 0 to 2^63 - 1, got {seed}")
    return checked
