"""Publishes the weights of a Python policy, whose code is an installed package and never part of the artifact."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from pillion_artifacts.card.content_checks import check_model
from pillion_artifacts.card.model_card import ModelCard, check_card
from pillion_artifacts.oci.manifest import digest_of
from pillion_artifacts.publishing.common.draft import Details, Draft, card_for
from pillion_artifacts.publishing.common.files import read_file


def import_weights(path: Path, details: Details, card: ModelCard, allowed: list[str]) -> Draft:
    """Imports a safetensors file, byte for byte. Runs the policy only if its package is allowed and installed.

    Raises `InvalidSourceError` if the file cannot be read, and `InvalidArtifactError` if it is no safetensors file.
    """
    weights = read_file(path)
    made = card_for(card, details)
    check_card(made)
    check_model(weights, made, path.name)
    lineage = msgspec.structs.replace(made.lineage, source=digest_of(weights))
    return Draft(
        weights,
        msgspec.structs.replace(made, lineage=lineage),
        source=None,
        unproven=_why_not_run(made.engine.distribution, allowed),
        allowed_code=allowed,
    )


def _why_not_run(distribution: str, allowed: list[str]) -> str:
    """Why the policy is not run here; empty: it is."""
    if _normal(distribution) not in map(_normal, allowed):
        return f"its package {distribution} may not run here: allow it with --allow-code {distribution}"
    try:
        version(distribution)
    except PackageNotFoundError:
        return f"its package {distribution} is not installed here: install it beside this command"
    return ""


def _normal(name: str) -> str:
    """The same for each spelling of a distribution's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
