"""`make gpu` says clearly when it tried nothing, and exports what it would measure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pillion_worker.torch_engine.pt2_archive import disarm
from tests.harness import COMMAND_S_MAX
from tools.gpu_checks import CUDA_BUILD, NOTHING_TRIED, missing
from tools.gpu_policies import mlp, nature_cnn
from tools.gpu_workers import depth_gain, neighbours

ROOT = Path(__file__).parents[1]


def test_without_a_cuda_device_it_says_in_one_line_that_nothing_was_tried() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [sys.executable, "-m", "tools.gpu_checks"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=COMMAND_S_MAX,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert NOTHING_TRIED in result.stdout
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("version", "cuda", "line"),
    [
        ("2.13.0+cpu", None, "torch 2.13.0+cpu is a build without CUDA: nothing was tried; install the other one: "),
        ("2.13.0", "13.0", "no CUDA device: nothing was tried (torch 2.13.0 finds none)"),
    ],
)
def test_a_build_without_cuda_is_not_taken_for_a_host_without_a_device(
    version: str, cuda: str | None, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert missing().startswith(line)
    file = Path(CUDA_BUILD.split()[-1])
    assert (ROOT / file).exists()


def test_what_it_measures_is_a_program_that_a_worker_takes() -> None:
    made = nature_cnn()
    program = torch.export.load(disarm(made.program))
    (pixels,) = made.inputs
    actions = program.module()(torch.from_numpy(np.zeros((3, *pixels.shape), pixels.dtype)))
    assert actions.shape == (3, made.width)


def test_what_it_measures_with_workers_is_measured_on_a_cpu_too() -> None:
    gain = depth_gain("mlp", mlp(), 2, "cpu", 0.2)
    assert all(rows_s > 0 for rows_s in gain["rows_s"].values())
    assert neighbours(mlp(), mlp(), "cpu", 3)["beside_p99_us"] > 0
