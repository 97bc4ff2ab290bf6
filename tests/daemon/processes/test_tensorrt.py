"""A daemon whose workers have TensorRT: it builds engines while it stages, and never while it serves. The GPU is a stub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pillion
from pillion_artifacts import Store
from pillion_artifacts.store.aliases import move_alias
from tests.conftest import StartDaemon
from tests.daemon.support.policies.shadow import publish_copy
from tests.harness import Daemon, copy_examples
from tests.worker.support.stub_gpu import StubGpu

POLICY = "lunar-lander"
PATH = f"/v1/policies/{POLICY}"


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubGpu:
    (tmp_path / "gpu").mkdir()
    return StubGpu(tmp_path / "gpu", monkeypatch)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """`lunar-lander@stable` is 1.0.0; 2.0.0 and 3.0.0 are other versions."""
    store = copy_examples(tmp_path / "store")
    for number, version in enumerate(("2.0.0", "3.0.0"), 1):
        publish_copy(store.root, POLICY, version, biased=number / 10)
    move_alias(store, POLICY, "stable", "1.0.0", expected="", by="a test")
    return store


def version_of(daemon: Daemon, version: str) -> dict[str, Any]:
    (found,) = [each for each in daemon.health()["policies"][0]["versions"] if each["version"] == version]
    return dict(found)


def answers(daemon: Daemon) -> bool:
    with pillion.connect(daemon.address) as session, session.begin(seed=1) as episode:
        return episode.act(np.zeros(8, np.float32)) in range(4)


def test_engines_are_built_while_staging_and_a_version_that_does_not_fit_is_refused_there(
    gpu: StubGpu, store: Store, tmp_path: Path, start_daemon: StartDaemon
) -> None:
    settings = {
        "engine__provider": "tensorrt",
        "engine__device": "cuda:0",
        "engine__precision": "tf32",
        "engine__build_cache_dir": tmp_path / "cache",
        "engine__device_memory_mb": 400,
        "limits__rows_max": 4,
    }
    daemon = start_daemon(policy=f"{POLICY}@stable", store=store.root, settings=settings)
    # Nothing was staged: it serves at once, and says that it does so without an engine.
    assert gpu.seen() == []
    assert "tensorrt was asked for: none was built" in version_of(daemon, "1.0.0")["fallback"]
    assert answers(daemon)
    switch = daemon.operation(daemon.ask("POST", f"{PATH}/switch", {"version": "2.0.0"}))
    assert switch["outcome"] == "done", switch
    (built, builders, *loaded) = gpu.seen()
    # At a low priority, in the staging process. The worker that serves only loads, at the daemon's own.
    assert built.split()[0] == "build"
    assert int(built.split()[1]) > 0
    assert builders == built.replace("build", "load")
    assert {line.split()[0] for line in loaded} == {"load"}
    assert int(loaded[-1].split()[1]) == 0
    assert version_of(daemon, "2.0.0")["fallback"] == ""
    assert answers(daemon)
    assert daemon.metric("pillion_worker_device_bytes", version="2.0.0") == 300_000_000
    assert version_of(daemon, "2.0.0")["worker"]["device_memory_mb"] == 300
    worker = version_of(daemon, "2.0.0")["worker"]
    gpu.set(taken_mb=500)
    refused = daemon.operation(daemon.ask("POST", f"{PATH}/switch", {"version": "3.0.0"}))
    assert (refused["outcome"], refused["error"]) == (
        "failed",
        "engine.device_memory_mb: expected at most 400, it took 500 MB of cuda:0",
    )
    assert version_of(daemon, "2.0.0")["worker"]["pid"] == worker["pid"]
    assert answers(daemon)
