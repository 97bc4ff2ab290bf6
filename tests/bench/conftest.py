"""The `pillion` command as a user runs it, and a recording made with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pillion_bench.recordings.recording import Recording
from tests.harness import COMMAND_S_MAX, Daemon

Pillion = Callable[..., "subprocess.CompletedProcess[str]"]


def run_pillion(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs `pillion` with these arguments in its own process."""
    return subprocess.run(
        [sys.executable, "-m", "pillion", *arguments],
        capture_output=True,
        text=True,
        timeout=COMMAND_S_MAX,
        check=False,
        **options,
    )


def report_of(*arguments: str) -> dict[str, Any]:
    """Returns the JSON report of a `pillion bench` command, which must succeed."""
    done = run_pillion("bench", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.fixture(scope="session")
def recorded(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Two short episodes of LunarLander, played through the shared daemon: the file, and the report of the command."""
    path = tmp_path_factory.mktemp("recordings") / "lander.safetensors"
    report = report_of(
        "record", "LunarLander-v3", "--policy", "lunar-lander", "--address", daemon.address,
        "--episodes", "2", "--steps-max", "50", "--seed", "5", "--out", str(path),
    )  # fmt: skip
    return path, report


@pytest.fixture
def recording(recorded: tuple[Path, dict[str, Any]]) -> Recording:
    """The recording of `recorded`, read from its file."""
    return Recording.load(recorded[0])
