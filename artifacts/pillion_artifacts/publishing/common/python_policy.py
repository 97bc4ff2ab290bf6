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
    """Why the policy is not run here, and all that must be done for it; empty: it is."""
    reasons, cures = [], []
    if _normal(distribution) not in map(_normal, allowed):
        reasons.append("may not run here")
        cures.append(f"allow it with --allow-code {distribution}")
    if not _is_installed(distribution):
        reasons.append("is not installed here")
        cures.append("install it beside this command")
    return f"its package {distribution} {' and '.join(reasons)}: {' and '.join(cures)}" if reasons else ""


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def _normal(name: str) -> str:
    """The same for each spelling of a distribution's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
