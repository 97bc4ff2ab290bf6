"""A policy on its way into a folder: what an importer makes, and what only the publisher can say."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import msgspec

from pillion_artifacts.card.golden_pairs import Arrays
from pillion_artifacts.card.model_card import Contributor, Environment, Lineage, Metric, ModelCard, Tolerance
from pillion_artifacts.publishing.common.source import SourcePolicy

NO_LICENCE = "NOASSERTION"
"""SPDX's word for a licence that nobody has stated."""

TOLERANCE = Tolerance(absolute=1e-4, relative=1e-4)
"""Of what is imported: two frameworks' sums of a few hundred float32 products differ by up to some 1e-5."""


class Details(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the publisher says of a policy: no source knows its own name."""

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


class Draft(msgspec.Struct, frozen=True):
    """A model, its card, and the source that it is compared with."""

    model: bytes
    card: ModelCard
    source: SourcePolicy
    centres: Arrays = {}
    """The mean of observations, where the source knows it: they are drawn around it."""
    spreads: Arrays = {}
    """Their deviation, likewise."""


def tool_versions(*names: str) -> dict[str, str]:
    """The versions of Python and of these distributions, as far as they are installed."""
    versions = {"python": platform.python_version()}
    for name in sorted({"numpy", "onnx", "onnxruntime", *names}):
        try:
            # a local label such as +cpu says how torch was built, which the weights do not depend on
            versions[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return versions
