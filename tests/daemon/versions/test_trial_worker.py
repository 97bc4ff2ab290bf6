"""A worker that a process starts for itself, to try a version in."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from pillion_artifacts import Store
from pillion_artifacts.card.golden_pairs import Golden, encode_golden
from pillion_artifacts.store.sealed_artifact import seal_artifact
from pilliond.engine.interface import EngineError
from pilliond.ipc.sealed_version import SealedVersion, seal
from pilliond.settings.schema import EngineSettings
from pilliond.versions import trial_worker as module
from pilliond.versions.loader import worker_engine
from pilliond.versions.trial_worker import TrialWorker
from tests.harness import STORE, wait_until

ROWS_MAX = 4


@pytest.fixture
def sealed() -> Iterator[SealedVersion]:
    store = Store(STORE)
    sealed = seal(seal_artifact(store, store.resolve("lunar-lander")))
    yield sealed
    sealed.close()


def test_it_runs_the_version_and_counts_the_time_of_its_worker(sealed: SealedVersion) -> None:
    with TrialWorker(sealed.request(), ROWS_MAX, EngineSettings(), []) as worker:
        version = worker.start(sealed.model_descriptor)
        before_ns = worker.cpu_clock()
        version.engine.inputs[0][:] = 0
        for _ in range(200):
            version.engine.runs[ROWS_MAX]()
        assert worker.cpu_clock() > before_ns > 0
        assert np.isfinite(version.engine.outputs["logits"]).all()
        worker.check_memory()
        pid = worker.pid
    assert not Path(f"/proc/{pid}").exists()


def test_it_ends_with_its_worker_and_says_how(sealed: SealedVersion) -> None:
    with TrialWorker(sealed.request(), ROWS_MAX, EngineSettings(), []) as worker:
        version = worker.start(sealed.model_descriptor)
        os.kill(worker.pid, signal.SIGKILL)
        wait_until(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_ZOMBIE)
        assert worker.cpu_clock() > 0
        with pytest.raises(EngineError, match="its worker ended"):
            version.engine.runs[1]()
        assert not version.engine.is_ready


def test_a_version_whose_golden_pairs_do_not_hold_as_the_settings_ask_is_tried_again_in_float32(
    sealed: SealedVersion,
) -> None:
    rows = {sealed.card.observation[0].name: np.zeros((1, 8), np.float32)}
    # ONNX Runtime computes the same on the CPU, whatever it is asked for: so the second try fails, too.
    with TrialWorker(sealed.request(), ROWS_MAX, EngineSettings(precision="tf32"), []) as worker:
        version = worker.start(sealed.model_descriptor)
        version.engine.inputs[0][:1] = 0
        version.engine.runs[1]()
        logits = version.engine.outputs["logits"][:1].copy()
        right, wrong = (encode_golden(Golden(rows, {"logits": each})) for each in (logits, logits + 1))
        with pytest.raises(EngineError, match="output 'logits'"):
            worker.start(sealed.model_descriptor, wrong)
        assert worker.request.fallback.startswith("tf32 was asked for: output 'logits'")
        sealed.fallback = worker.request.fallback
        assert worker_request(sealed) == ("float32", False, sealed.fallback)
        worker.start(sealed.model_descriptor, right)
        assert worker.request.fallback == sealed.fallback, "what was tried is known"


def worker_request(sealed: SealedVersion) -> tuple[str, bool, str]:
    """The precision, the memory format and the fallback that the serving process asks a worker for."""
    settings = EngineSettings(precision="tf32", channels_last=True)
    request = worker_engine(sealed.request(), ROWS_MAX, settings, [])._request
    return request.precision, request.channels_last, request.fallback


def test_its_worker_has_a_limit_of_its_own_and_not_that_of_the_process_that_starts_it(sealed: SealedVersion) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (64 * 1024**3, before[1]))
    try:
        with TrialWorker(sealed.request(), ROWS_MAX, EngineSettings(worker_memory_mb_max=1_000), []) as worker:
            worker.start(sealed.model_descriptor)
            assert psutil.Process(worker.pid).rlimit(psutil.RLIMIT_AS) == (1_000_000_000, 1_000_000_000)
            assert resource.getrlimit(resource.RLIMIT_AS) == (64 * 1024**3, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_worker_that_is_too_large_is_told(sealed: SealedVersion, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EngineSettings(worker_memory_mb_max=256)
    with TrialWorker(sealed.request(), ROWS_MAX, settings, []) as worker:
        worker.start(sealed.model_descriptor)
        worker.check_memory()
        monkeypatch.setattr(module, "_BYTES_PER_MB", 100_000)
        with pytest.raises(
            EngineError, match=r"^its worker has \d+ MB of resident memory, engine.worker_memory_mb_max is 256$"
        ):
            worker.check_memory()


def test_a_worker_that_grows_too_large_while_it_loads_is_told_before_it_is_done(
    sealed: SealedVersion, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    # A policy that takes memory in its factory: the worker has not answered yet.
    grow = "import sys, time; taken = b'x' * 400_000_000; time.sleep(100)"
    python.write_text(
        f'#!/bin/sh\nfor last; do :; done\n[ $last = --check ] && exec {sys.executable} "$@"\n'
        f'exec {sys.executable} -c "{grow}"\n'
    )
    python.chmod(0o755)
    settings = EngineSettings(python=str(python), worker_memory_mb_max=256)
    worker = TrialWorker(sealed.request(), ROWS_MAX, settings, [])
    with worker, pytest.raises(EngineError, match=r"^its worker has \d{3} MB of resident memory, engine.worker_memory"):
        worker.start(sealed.model_descriptor)


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/true"])
def test_an_interpreter_that_runs_no_worker_is_told(sealed: SealedVersion, python: str) -> None:
    worker = TrialWorker(sealed.request(), ROWS_MAX, EngineSettings(python=python), [])
    with worker, pytest.raises(EngineError, match=rf"^engine\.python: .*{python}"):
        worker.start(sealed.model_descriptor)
