"""`make gpu` says clearly when it tried nothing, and exports what it would measure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from pillion_worker.torch_engine.pt2_archive import disarm
from tests.harness import COMMAND_S_MAX
from tools.gpu_checks import NOTHING_TRIED
from tools.gpu_policies import mlp, nature_cnn
from tools.gpu_workers import depth_gain, neighbours

ROOT = Path(__file__).parents[1]


def test_without_a_cuda_device_it_says_that_nothing_was_tried() -> None:
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
    assert result.stdout.startswith("no CUDA device: nothing was tried")
    assert NOTHING_TRIED in result.stdout
    assert len(result.stdout.splitlines()) == 1


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
