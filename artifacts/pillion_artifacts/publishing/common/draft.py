"""Drafts: what an importer makes of a source, and the details that only the publisher knows."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import msgspec

from pillion_artifacts.card.golden_pairs import Arrays
from pillion_artifacts.card.model_card import (
    SCHEMA,
    Contributor,
    Environment,
    Lineage,
    Metric,
    ModelCard,
    TensorCard,
    Tolerance,
)
from pillion_artifacts.publishing.common.source_policy import SourcePolicy

NO_LICENCE = "NOASSERTION"
"""SPDX's word for an unknown licence."""

TOLERANCE = Tolerance(absolute=1e-4, relative=1e-4)
"""The default for imports. Sums of a few hundred float32 products differ by up to about 1e-5 between frameworks."""


class Details(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The publisher's description of a policy. No source contains its name."""

    name: str
    version: str
    description: str = ""
    licence: str = NO_LICENCE
    environment: Environment | None = None
    safe_action: list[float] | None = None
    tolerance: Tolerance = TOLERANCE
    metrics: dict[str, Metric] = {}
    lineage: Lineage = Lineage()
    contributors: list[Contributor] = []


def _nothing() -> None:
    """Frees nothing."""


class Draft(msgspec.Struct, frozen=True):
    """A model, its card, and the source to compare it with."""

    model: bytes
    card: ModelCard
    source: SourcePolicy | None
    """None: nothing but the engine that will serve runs this model."""
    centres: Arrays = {}
    """The mean of observations by name, if the source has it. Observations are drawn around it."""
    spreads: Arrays = {}
    """The standard deviation of the same observations."""
    release: Callable[[], None] = _nothing
    """Frees the memory of the source, once it has run."""
    unproven: str = ""
    """Why the model cannot be run here, so that it is published without golden pairs; empty: it can be."""
    allowed_code: list[str] = []
    """The packages that a Python policy may come from, while it is compared."""


def card_for(card: ModelCard, details: Details) -> ModelCard:
    """The publisher's card, with the name and version of the publication."""
    return msgspec.structs.replace(
        card,
        name=details.name,
        version=details.version,
        description=details.description or card.description,
        licence=card.licence if details.licence == NO_LICENCE else details.licence,
        environment=details.environment or card.environment,
    )


def derived_card(observation: list[TensorCard], outputs: list[TensorCard], details: Details, what: str) -> ModelCard:
    """A card of what a source itself says about its inputs and outputs."""
    return ModelCard(
        schema=SCHEMA,
        name=details.name,
        version=details.version,
        description=details.description or f"Published from {what}.",
        licence=details.licence,
        observation=observation,
        outputs=outputs,
        safe_action=details.safe_action,
        tolerance=details.tolerance,
        environment=details.environment,
        metrics=details.metrics,
        lineage=details.lineage,
        contributors=details.contributors,
    )


def tool_versions(*names: str) -> dict[str, str]:
    """The versions of Python and of these packages, as far as they are installed."""
    versions = {"python": platform.python_version()}
    for name in sorted({"numpy", "onnx", "onnxruntime", *names}):
        try:
            # a local label such as +cpu is the build of torch, which does not change the weights
            versions[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return versions
