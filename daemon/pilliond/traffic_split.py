"""Shares: which arm of a route an episode falls to, by a hash of its seed. The same seed always falls to the same arm."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

_BITS: Final = 0xFFFF_FFFF_FFFF_FFFF
_UNIT: Final = 2.0**-53


class Arm(msgspec.Struct, frozen=True):
    """A part of a policy's new episodes that another version than the stable one answers."""

    name: str
    """`canary`, or what an experiment calls it."""
    digest: bytes
    share: float
    """Of all new episodes, above 0 and at most 1."""


def salt_of(policy: str) -> int:
    """What sets the hashes of one policy apart from those of another."""
    return int.from_bytes(hashlib.sha256(policy.encode()).digest()[:8])


def unit_of(salt: int, seed: int) -> float:
    """A number from 0 up to 1 for a seed, evenly spread: SplitMix64 of both (see `sampling`)."""
    return (_mix(_mix(seed & _BITS) ^ salt) >> 11) * _UNIT


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _BITS
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _BITS
    return value ^ (value >> 31)
