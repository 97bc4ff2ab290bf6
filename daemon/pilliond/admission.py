"""Admission: what is asked of a stored version before it may be loaded."""

from __future__ import annotations

from datetime import UTC, datetime

from pillion_artifacts import Artifact, ArtifactError, Resolved, Store
from pillion_artifacts.trust import TrustPolicy, check_trust
from pilliond.errors import BadPolicyError


def admit(store: Store, resolved: Resolved, trust: TrustPolicy) -> tuple[Artifact, list[str]]:
    """The verified artifact, and who signed it; raises `BadPolicyError`.

    Whether it may be loaded is decided by its digest, before any of its files is read.
    """
    try:
        trusted = check_trust(store, resolved, trust, datetime.now(UTC))
        artifact = store.read(resolved)
    except ArtifactError as error:
        raise BadPolicyError(str(error)) from None
    refuse_state(artifact)
    return artifact, trusted.signed_by


def refuse_state(artifact: Artifact) -> None:
    """Raises `BadPolicyError` for a recurrent policy: without its state it would act as if each step were the first."""
    if artifact.card.state:
        names = ", ".join(state.name for state in artifact.card.state)
        raise BadPolicyError(
            f"{artifact.policy}@{artifact.version}: it carries state from step to step ({names}), "
            "which this daemon cannot do yet"
        )
