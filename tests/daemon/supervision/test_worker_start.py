"""Workers that are started before there is anything to load: what they import by then, and who ends them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pillion_artifacts import Store
from pillion_artifacts.card.model_card import EngineCard
from pillion_artifacts.verify.trust_policy import TrustPolicy
from pilliond.engine.worker import WorkerEngine
from pilliond.errors import BadPolicyError
from pilliond.linux.spawner import Spawner
from pilliond.rollout.restore import admitted
from pilliond.settings.schema import EngineSettings
from pilliond.supervision.worker_start import FirstWorker, StartedWorker
from tests.daemon.support.policies.shadow import publish_times
from tests.harness import WAIT_S_MAX, blob_of, wait_until
from tests.worker.support.policies import shipped
from tests.worker.support.processes import sealed

TORCH, ONNX = EngineCard(kind="torch"), EngineCard(kind="onnx")


@pytest.fixture
def spawner() -> Iterator[Spawner]:
    spawner = Spawner()
    spawner.start()
    yield spawner
    spawner.close()


def has_library(pid: int, name: str) -> bool:
    return name in Path(f"/proc/{pid}/maps").read_text()


def test_a_worker_imports_its_library_before_it_is_asked_to_load(spawner: Spawner) -> None:
    started = StartedWorker(spawner, EngineSettings(), "onnx")
    try:
        wait_until(lambda: has_library(started.process.pid, "onnxruntime"))
        assert started.process.poll() is None
    finally:
        started.close()
    assert started.process.returncode == -9


def test_what_cannot_be_imported_ahead_does_not_keep_a_worker_from_loading_something_else(spawner: Spawner) -> None:
    started = StartedWorker(spawner, EngineSettings(), "none-of-that-name")
    policy = shipped("lunar-lander")
    engine = WorkerEngine(policy.spec, policy.parameters, 1, policy.states)
    try:
        with sealed(policy.model) as model:
            engine.attach(started.end, model)
        engine.wait_ready(WAIT_S_MAX)
        assert engine.is_ready
    finally:
        engine.close()
        started.close()


def test_only_a_policy_that_is_sure_to_need_a_worker_gets_one_ahead(spawner: Spawner) -> None:
    first = FirstWorker(spawner, EngineSettings())
    first.start(ONNX)
    assert first.take() is None
    first.start(TORCH)
    started = first.take()
    assert started is not None
    assert first.take() is None
    started.close()
    everywhere = FirstWorker(spawner, EngineSettings(placement="worker"))
    everywhere.start(ONNX)
    process = everywhere._started.process if everywhere._started else None
    assert process is not None
    assert process.poll() is None
    everywhere.close()
    assert process.wait(WAIT_S_MAX) == -9


def test_one_that_cannot_be_started_is_left_to_the_pool(spawner: Spawner) -> None:
    first = FirstWorker(spawner, EngineSettings(python="/nowhere/python"))
    first.start(TORCH)
    assert first.take() is None


def test_the_card_is_told_before_the_model_is_read_and_only_of_a_version_that_is_trusted(tmp_path: Path) -> None:
    root = tmp_path / "store"
    publish_times(root, "scaling", "1.0.0", 2.0)
    told: list[EngineCard] = []
    with pytest.raises(BadPolicyError, match="trust"):
        admitted(Store(root), "scaling@1.0.0", TrustPolicy(required=True), told.append)
    assert told == []
    model = blob_of(root, "scaling", "model.onnx")
    model.chmod(0o600)
    model.write_bytes(bytes(len(model.read_bytes())))
    with pytest.raises(BadPolicyError, match=r"model\.onnx"):
        admitted(Store(root), "scaling@1.0.0", TrustPolicy(), told.append)
    assert [card.kind for card in told] == ["onnx"]
