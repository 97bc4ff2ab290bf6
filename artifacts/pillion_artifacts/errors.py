"""What can be wrong with a policy.

ArtifactError
├── PolicyNotFoundError      the store has no such policy, or no version that fits
└── InvalidArtifactError     it is there, and it is not what it says it is
    └── DigestMismatchError  its bytes are not those that were published
"""

from __future__ import annotations


class ArtifactError(Exception):
    """A policy cannot be used."""


class PolicyNotFoundError(ArtifactError):
    """The store has no such policy, or no version that fits."""


class InvalidArtifactError(ArtifactError):
    """A file of the artifact is missing, unreadable or contradicts another."""


class DigestMismatchError(InvalidArtifactError):
    """The bytes that were read are not those that were published."""
