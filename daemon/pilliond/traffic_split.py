"""The traffic split: assigns an episode to an arm of the route by a hash of its seed. The same seed always gets the same arm."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

_BITS: Final = 0xFFFF_FFFF_FFFF_FFFF
_UNIT: Final = 2.0**-53


class Arm(msgspec.Struct, frozen=True):
    """A share of a policy's new episodes that another version answers than the stable one."""

    name: str
    """`canary`, or a name of the operator's choice."""
    digest: bytes
    share: float
    """Of all new episodes, above 0 and at most 1."""


def salt_of(policy: str) -> int:
    """Returns a salt, so that one seed gets independent hashes in two policies."""
    return int.from_bytes(hashlib.sha256(policy.encode()).digest()[:8])


def unit_of(salt: int, seed: int) -> float:
    """Returns a number in [0, 1) for a seed, uniformly distributed: SplitMix64 of both (see `engine.sampling`)."""
    return (_mix(_mix(seed & _BITS) ^ salt) >> 11) * _UNIT


def _mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _BITS
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _BITS
    return value ^ (value >> 31)
