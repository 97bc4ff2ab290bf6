"""TensorRT engines are built while a version is staged, and only loaded afterwards. The GPU and its software are stubs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pillion_artifacts import Store
from pillion_artifacts.store.sealed_artifact import seal_artifact
from pilliond.engine.interface import EngineError
from pilliond.engine.load_request import TENSORRT_PROVIDER
from pilliond.ipc.sealed_version import SealedVersion, seal
from pilliond.settings.schema import EngineSettings
from pilliond.versions.engine_build import build_engine
from pilliond.versions.trial_worker import TrialWorker
from tests.harness import STORE, WAIT_S_MAX, wait_until
from tests.worker.support.stub_gpu import StubGpu

ROWS_MAX = 4
CUDA_PROVIDER = "CUDAExecutionProvider"


@pytest.fixture
def sealed() -> Iterator[SealedVersion]:
    store = Store(STORE)
    sealed = seal(seal_artifact(store, store.resolve("lunar-lander")))
    yield sealed
    sealed.close()


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubGpu:
    (tmp_path / "gpu").mkdir()
    return StubGpu(tmp_path / "gpu", monkeypatch)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "tensorrt"


def asking(cache: Path, **settings: Any) -> EngineSettings:
    asked: dict[str, Any] = {"provider": "tensorrt", "device": "cuda:0", "precision": "tf32", **settings}
    return EngineSettings(build_cache_dir=str(cache), **asked)


def stage(sealed: SealedVersion, settings: EngineSettings) -> None:
    build_engine(sealed.request(), ROWS_MAX, settings, [], sealed.model_descriptor)


def serve(sealed: SealedVersion, settings: EngineSettings) -> dict[str, Any]:
    """Serves the version as any worker does that builds nothing; returns how its engine describes itself."""
    with TrialWorker(sealed.request(), ROWS_MAX, settings, []) as worker:
        engine = worker.start(sealed.model_descriptor).engine
        engine.inputs[0][:] = 1
        engine.runs[ROWS_MAX]()
        assert engine.outputs["logits"][:ROWS_MAX].any()
        return engine.describe()


def test_an_engine_is_built_once_and_then_only_loaded(gpu: StubGpu, sealed: SealedVersion, cache: Path) -> None:
    settings = asking(cache)
    stage(sealed, settings)
    assert [line.split()[0] for line in gpu.seen()] == ["build", "load"]
    described = serve(sealed, settings)
    assert (described["provider"], described["device"], described.get("fallback")) == (
        TENSORRT_PROVIDER,
        "cuda:0",
        None,
    )
    assert described["memory"] == "pinned"
    assert described["graphs"].startswith("none: TensorRT captures one graph for all batches")
    assert gpu.captured() == 0
    stage(sealed, settings)
    assert {line.split()[0] for line in gpu.seen()} == {"load"}
    assert [file.suffix for file in cache.iterdir()] == [".engine"]


@pytest.mark.parametrize("change", ["tensorrt", "precision", "rows"])
def test_an_engine_of_something_else_is_not_loaded(
    gpu: StubGpu, sealed: SealedVersion, cache: Path, change: str
) -> None:
    settings = asking(cache)
    stage(sealed, settings)
    if change == "tensorrt":
        gpu.set(tensorrt="10.10.0")
    changed: dict[str, dict[str, Any]] = {"precision": {"precision": "float16"}, "rows": {"strict": True}}
    settings = asking(cache, **changed.get(change, {}))
    gpu.seen()
    described = serve(sealed, settings)
    assert (described["provider"], gpu.seen()) == (CUDA_PROVIDER, [])
    assert described["fallback"] == (
        "tensorrt was asked for: none was built for this model, device and software: one is built while a version is staged"
    )


FAILURES = {
    "fail": "its build failed: onnxruntime cannot load the model: no implementation of node 7",
    "in_parts": "its build failed: TensorRT does not take the graph as a whole",
    "crash": "its build did not end in time, or ended its worker",
    "hang": "its build did not end in time, or ended its worker",
}


@pytest.mark.parametrize("how", FAILURES)
def test_a_build_that_fails_or_does_not_end_is_said_and_cuda_computes(
    gpu: StubGpu, sealed: SealedVersion, cache: Path, how: str
) -> None:
    gpu.set(build=how)
    settings = asking(cache, build_s_max=5 if how == "hang" else 60)
    stage(sealed, settings)
    assert [line.split()[0] for line in gpu.seen()] == ["build"]
    assert len(gpu.compilers()) == (2 if how in ("hang", "crash") else 0)
    assert [pid for pid in gpu.compilers() if os.path.exists(f"/proc/{pid}")] == []
    described = serve(sealed, settings)
    assert (described["provider"], described["fallback"]) == (
        CUDA_PROVIDER,
        f"tensorrt was asked for: {FAILURES[how]}",
    )
    assert gpu.seen() == []
    required = asking(cache, device_required=True)
    why = f"engine.device_required: expected {TENSORRT_PROVIDER}, got {CUDA_PROVIDER} \\(tensorrt was asked for: "
    with pytest.raises(EngineError, match=why + FAILURES[how]):
        serve(sealed, required)
    # Whoever stages it again builds again.
    gpu.set(build="ok")
    stage(sealed, required)
    assert serve(sealed, required)["provider"] == TENSORRT_PROVIDER


_STAGING = """
import sys
from pathlib import Path
from pillion_artifacts import Store
from pillion_artifacts.store.sealed_artifact import seal_artifact
from pilliond.ipc.sealed_version import seal
from pilliond.linux.sandbox import end_group_with_leader
from pilliond.settings.schema import EngineSettings
from pilliond.versions.engine_build import build_engine
end_group_with_leader()
store = Store(Path(sys.argv[1]))
sealed = seal(seal_artifact(store, store.resolve("lunar-lander")))
settings = EngineSettings(provider="tensorrt", device="cuda:0", precision="tf32", build_cache_dir=sys.argv[2])
build_engine(sealed.request(), 4, settings, [], sealed.model_descriptor)
"""


def test_a_build_and_its_compiler_end_with_the_staging_process_however_that_ends(gpu: StubGpu, cache: Path) -> None:
    gpu.set(build="hang")
    command = [sys.executable, "-c", _STAGING, str(STORE), str(cache)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, process_group=0) as staging:
        try:
            wait_until(lambda: len(gpu.compilers()) == 2)
            staging.kill()
            # What is left of the group holds the pipe open.
            staging.communicate(timeout=WAIT_S_MAX)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(staging.pid, signal.SIGKILL)


def test_a_damaged_engine_or_one_of_a_folder_that_others_write_to_is_not_loaded(
    gpu: StubGpu, sealed: SealedVersion, cache: Path
) -> None:
    settings = asking(cache)
    stage(sealed, settings)
    gpu.seen()
    nowhere = cache.with_name("file")
    nowhere.touch()
    fallback = serve(sealed, asking(nowhere / "cache"))["fallback"]
    assert fallback == f"tensorrt was asked for: its cache {nowhere}/cache: Not a directory"
    cache.chmod(0o777)
    assert "of this user that nobody else can write to" in serve(sealed, settings)["fallback"]
    cache.chmod(0o700)
    (file,) = cache.iterdir()
    with file.open("r+b") as engine:
        engine.seek(-1, os.SEEK_END)
        engine.write(b"\1")
    assert "its cache had a damaged build, which is removed" in serve(sealed, settings)["fallback"]
    assert gpu.seen() == []


def test_what_a_version_takes_of_its_device_is_measured_and_one_that_does_not_fit_is_refused(
    gpu: StubGpu, sealed: SealedVersion, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = asking(cache, provider="cuda")
    assert serve(sealed, settings)["device_memory_mb"] == 300
    why = "engine.device_memory_mb: expected at most 299, it took 300 MB of cuda:0"
    with pytest.raises(EngineError, match=why):
        serve(sealed, asking(cache, provider="cuda", device_memory_mb=299))
    gpu.set(free_mb=299, taken_mb=299)
    assert serve(sealed, settings)["device_memory_mb"] == 299
    assert "device_memory_mb" not in serve(sealed, EngineSettings(device="cpu"))
    with monkeypatch.context() as patched:
        # The real ONNX Runtime, which then computes on the CPU.
        patched.delenv("PYTHONPATH")
        assert "device_memory_mb" not in serve(sealed, settings)
    # A host without a device.
    gpu.set(free_mb=0)
    assert "device_memory_mb" not in serve(sealed, settings)
