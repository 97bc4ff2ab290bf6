"""`pillion bench engine --engine`: torch programs and Python policies, measured beside a bare torch call."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pillion_artifacts import Store
from pillion_artifacts.card.layers import MODEL_NAMES
from pillion_bench.limits import BY_HAND_S_MAX
from pillion_bench.measurements.engines.crossing import kinds_of
from pillion_bench.measurements.engines.engine import EngineOptions, parts_of
from pillion_bench.measurements.engines.footprint import measure_memory
from pillion_bench.measurements.engines.subjects import ENGINES, PYTHON, TABLE, TORCH, make_table, subject_of
from pillion_bench.measurements.engines.tables import print_engine
from pillion_bench.process.placement import parse_placement
from pillion_bench.process.worker import Worker
from pillion_bench.roles.by_hand import ByHandPlan, ByHandResult
from tests.bench.conftest import report_of, run_pillion


def test_a_torch_worker_is_compared_with_the_bare_torch_call(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of("engine", "--engine", "torch", "--seconds", "0.2", "--rounds", "1")
    assert (report["engine"], report["policy"]) == ("torch", "cart-pole-pixels")
    assert "inline_us" not in report
    assert report["n"] == sum(report[f"{kind}_us"]["n"] for kind in kinds_of(TORCH))
    for kind in ("worker", "worker_asleep", "worker_spinning"):
        added_us = report[f"{kind}_us"]["p50"] - report["bare_us"]["p50"]
        assert report["added_us"][kind] == pytest.approx(added_us, abs=0.01)
    print_engine(report)
    assert "bare torch call" in capsys.readouterr().out


def test_torch_is_in_the_memory_of_the_worker_alone() -> None:
    with subject_of(PYTHON) as subject:
        part = measure_memory(subject, parse_placement(""), 0.2, lambda _: None)
    assert part["has_torch"] == {"control": False, "serving": False, "worker": True}
    serving_mb = part["serving_mb"]
    assert part["added_mb"] == pytest.approx(serving_mb["worker"] - serving_mb["onnx_worker"], abs=0.01)
    assert part["worker_mb"] > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_the_large_model_can_be_published_and_loaded_by_hand(engine: str, tmp_path: Path) -> None:
    make_table(tmp_path / "version", engine, "1.0.0", 2.0)
    Store(tmp_path / "store").publish(TABLE, "1.0.0", tmp_path / "version")
    model = tmp_path / "version" / MODEL_NAMES[engine]
    assert model.stat().st_size == pytest.approx(2e6, rel=0.05)
    with Worker("by-hand", ByHandPlan(engine, str(model)), None) as reader:
        result = reader.receive(ByHandResult, BY_HAND_S_MAX)
    assert min(result.import_ns, result.read_ns, result.hash_ns, result.load_ns, result.cpu_ns) > 0


def test_each_engine_has_its_own_parts() -> None:
    assert parts_of(PYTHON) == parts_of(TORCH) == ("rows", "interpreter", "start", "memory")
    assert EngineOptions(rounds=2, engine=TORCH).segments == 20
    assert EngineOptions(rounds=2, engine=TORCH, also=parts_of(TORCH)).segments == 20 + 12 + 8 + 6 + 4
    done = run_pillion("bench", "engine", "--engine", "torch", "--also", "cache")
    assert done.returncode == os.EX_USAGE
    assert "expected some of rows, interpreter, start, memory, or all; got 'cache'" in done.stderr


def test_without_torch_one_line_says_how_to_install_it(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = run_pillion("bench", "engine", "--engine", "torch", env=environment)
    assert (done.returncode, done.stdout) == (os.EX_UNAVAILABLE, "")
    assert done.stderr == "pillion: torch is not installed: pip install 'pillion[torch]'\n"
