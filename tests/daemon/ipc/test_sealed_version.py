"""A sealed version knows, from its file and its card, whether its graph is bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from pillion_artifacts import Store
from pillion_artifacts.store.sealed_artifact import seal_artifact
from pilliond.ipc.placement import Placement
from pilliond.ipc.sealed_version import seal
from tests.daemon.support.policies.graphs import publish_table, repeated_model
from tests.harness import STORE


@pytest.mark.parametrize("policy", ["cart-pole-pixels", "highway-fast", "lunar-lander"])
def test_the_policies_that_ship_are_bounded(policy: str) -> None:
    store = Store(STORE)
    sealed = seal(seal_artifact(store, store.resolve(policy)))
    assert sealed.request().unbounded == ""
    sealed.close()


def test_the_reason_why_a_version_is_not_bounded_goes_to_the_serving_process(tmp_path: Path) -> None:
    publish_table(tmp_path)
    publish_table(tmp_path, "1.1.0", repeated_model())
    store = Store(tmp_path)
    for version, expected in (("1.0.0", ""), ("1.1.0", "its graph has a Loop")):
        sealed = seal(seal_artifact(store, store.resolve(f"table@{version}")))
        sealed.placement = Placement("worker", "a test says so")
        sealed.device_memory_mb = 7
        copied = sealed.copy()
        assert (copied.request().unbounded, copied.placement) == (expected, sealed.placement)
        assert copied.device_memory_mb == 7
        sealed.close()
        copied.close()
