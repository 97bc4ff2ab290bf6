"""Preflight: checks a stored version before it may be loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime

from pillion_artifacts import ArtifactError, Resolved, Store
from pillion_artifacts.card.model_card import EngineCard
from pillion_artifacts.store.sealed_artifact import SealedArtifact, seal_artifact
from pillion_artifacts.verify.trust_policy import TrustPolicy, check_trust
from pilliond.errors import BadPolicyError


def why_code_refused(engine: EngineCard, trust: TrustPolicy) -> str:
    """Returns why the settings do not allow what a card's engine would run; empty if they do."""
    if engine.kind == "torchscript" and not trust.torchscript:
        return "it is a TorchScript program, and trust.torchscript is false"
    if engine.kind == "python" and _normalized(engine.distribution) not in map(_normalized, trust.code):
        allowed = ", ".join(trust.code) or "none"
        cure = json.dumps([*trust.code, engine.distribution])
        return (
            f"engine.distribution: expected a package that trust.code allows ({allowed}), got {engine.distribution!r}: "
            f"if you trust it, set trust.code = {cure}"
        )
    return ""


def _normalized(distribution: str) -> str:
    """The name of a distribution as PyPI compares it, see PEP 503."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def admit(
    store: Store, resolved: Resolved, trust: TrustPolicy, on_card: Callable[[EngineCard], None] = lambda _: None
) -> tuple[SealedArtifact, list[str]]:
    """Returns the verified, sealed artifact, which the caller closes, and the names of its signers; raises `BadPolicyError`.

    The trust policy decides by the digest, before any file of the version is read, and by what its card asks for, before any
    other file is. `on_card` gets what its card says of its engine before they are, which may take seconds.
    """
    try:
        trusted = check_trust(store, resolved, trust, datetime.now(UTC))
        engine = store.card(resolved, store.manifest(resolved)).engine
        if why := why_code_refused(engine, trust):
            raise BadPolicyError(f"{resolved}: {why}")
        on_card(engine)
        artifact = seal_artifact(store, resolved)
    except ArtifactError as error:
        raise BadPolicyError(str(error)) from None
    return artifact, trusted.signed_by
