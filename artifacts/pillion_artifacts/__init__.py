"""The artifact store: a daemon serves exactly the bytes that were published."""

from pillion_artifacts.card.model_card import Distribution, ModelCard, StateCard, TensorCard, parse_card
from pillion_artifacts.errors import (
    ArtifactError,
    DigestMismatchError,
    InvalidArtifactError,
    InvalidSourceError,
    ParityError,
    PolicyNotFoundError,
)
from pillion_artifacts.publishing.sources import export
from pillion_artifacts.store.store import Artifact, Resolved, Store
from pillion_artifacts.version_range import VersionRange

__all__ = [
    "Artifact",
    "ArtifactError",
    "DigestMismatchError",
    "Distribution",
    "InvalidArtifactError",
    "InvalidSourceError",
    "ModelCard",
    "ParityError",
    "PolicyNotFoundError",
    "Resolved",
    "StateCard",
    "Store",
    "TensorCard",
    "VersionRange",
    "export",
    "parse_card",
]
