"""Preflight: checks a stored version before it may be loaded."""

from __future__ import annotations

from datetime import UTC, datetime

from pillion_artifacts import ArtifactError, Resolved, Store
from pillion_artifacts.store.sealed_artifact import SealedArtifact, seal_artifact
from pillion_artifacts.verify.trust_policy import TrustPolicy, check_trust
from pilliond.errors import BadPolicyError


def admit(store: Store, resolved: Resolved, trust: TrustPolicy) -> tuple[SealedArtifact, list[str]]:
    """Returns the verified, sealed artifact, which the caller closes, and the names of its signers; raises `BadPolicyError`.

    The trust policy decides by the digest, before any file of the version is read.
    """
    try:
        trusted = check_trust(store, resolved, trust, datetime.now(UTC))
        artifact = seal_artifact(store, resolved)
    except ArtifactError as error:
        raise BadPolicyError(str(error)) from None
    return artifact, trusted.signed_by
