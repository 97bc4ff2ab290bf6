"""An assignment as the control process gives it, for tests that run the serving process without one."""

from __future__ import annotations

from pillion_artifacts import Store
from pillion_artifacts.sealed import seal_bytes
from pilliond.channel import Assignment
from pilliond.metrics_page import make_page
from pilliond.settings import Settings
from tests.harness import STORE


def assigned(address: str) -> Assignment:
    """To serve `lunar-lander` at `address`, with every setting at its default."""
    artifact = Store(STORE).load("lunar-lander")
    settings = Settings()
    return Assignment(
        epoch=1,
        listen=[address],
        policy=artifact.policy,
        version=artifact.version,
        digest=bytes.fromhex(artifact.digest.removeprefix("sha256:")),
        spec=artifact.card.spec(),
        distribution=artifact.card.distribution,
        safe_action=artifact.card.safe_action,
        tolerance=artifact.card.tolerance,
        states=artifact.card.state,
        model_descriptor=seal_bytes(artifact.model),
        golden_descriptor=-1,
        page_descriptor=make_page(),
        threads=settings.engine.threads,
        limits=settings.limits,
        serving=settings.serving,
        group=None,
    )
