"""`pillion bench replay` sends every recorded act and finds every action that differs from the recording."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pillion_artifacts.card.model_card import Tolerance
from pillion_bench.recordings.comparison import differing_steps
from pillion_bench.recordings.recording import Recording
from tests.bench.conftest import report_of, run_pillion
from tests.harness import Daemon

QUICK = ("--speed", "max", "--floor-seconds", "0")


def replay(path: Path, daemon: Daemon, *options: str) -> subprocess.CompletedProcess[str]:
    """Replays a file as fast as possible, without baselines."""
    return run_pillion("bench", "replay", str(path), "--address", daemon.address, *QUICK, *options)


def test_a_replay_gets_the_recorded_actions(recorded: tuple[Path, dict[str, Any]], daemon: Daemon) -> None:
    report = report_of("replay", str(recorded[0]), "--address", daemon.address, *QUICK)
    assert (report["n"], report["mismatches"]) == (100, 0)
    assert report["recordings"][0]["episodes"] == 2


def test_every_session_replays_the_whole_recording(recorded: tuple[Path, dict[str, Any]], daemon: Daemon) -> None:
    report = report_of(
        "replay", str(recorded[0]), "--address", daemon.address,
        "--sessions", "3", "--speed", "4", "--floor-seconds", "0.02",
    )  # fmt: skip
    assert (report["n"], report["mismatches"], report["sessions"]) == (300, 0, 3)
    assert report["floor_us"]["zmq"] > 0


def test_a_tampered_action_is_found(recording: Recording, daemon: Daemon, tmp_path: Path) -> None:
    action = recording.action["action"].copy()
    action[17] = 3 - action[17]
    path = tmp_path / "tampered.safetensors"
    msgspec.structs.replace(recording, action={"action": action}).save(path)
    done = replay(path, daemon)
    assert done.returncode == 1
    result = recording.action["action"][17]
    assert done.stderr == (
        "pillion: tampered.safetensors: 1 of 100 actions differ from the recording; "
        f"the first: session 0, step 17, action: expected {action[17]}, got {result}\n"
    )


def test_another_artifact_than_the_recorded_one_is_refused(
    recording: Recording, daemon: Daemon, tmp_path: Path
) -> None:
    path = tmp_path / "other.safetensors"
    msgspec.structs.replace(recording, digest="sha256:" + "00" * 32).save(path)
    done = replay(path, daemon)
    assert done.returncode == 65
    assert "use --any-version to replay it anyway" in done.stderr
    assert replay(path, daemon, "--any-version").returncode == 0


def test_observations_of_another_shape_are_refused(recording: Recording, daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "short.safetensors"
    short = recording.observation["observation"][:, :5].copy()
    msgspec.structs.replace(recording, observation={"observation": short}).save(path)
    done = replay(path, daemon)
    assert done.returncode == 65
    assert "expected float32 [8], got float32 [5]" in done.stderr


def test_a_file_that_is_not_a_recording_is_refused_in_one_line(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    path.write_text("nothing")
    done = replay(path, daemon)
    assert done.returncode == 65
    assert done.stderr.count("\n") == 1


def test_floats_may_differ_by_the_tolerance_and_integers_not_at_all() -> None:
    tolerance = Tolerance(absolute=0.1, relative=0.0)
    floats = np.array([[1.0, 2.0], [3.0, np.nan]])
    assert not differing_steps(floats, floats + 0.09, tolerance).any()
    assert differing_steps(floats, floats + np.array([[0.0, 0.2], [0.0, 0.0]]), tolerance).tolist() == [True, False]
    assert differing_steps(np.array([1, 2]), np.array([1, 3]), tolerance).tolist() == [False, True]


@pytest.mark.parametrize("speed", ["fast", "-1", "nan", "inf"])
def test_a_bad_speed_is_refused(recorded: tuple[Path, dict[str, Any]], speed: str) -> None:
    done = run_pillion("bench", "replay", str(recorded[0]), "--speed", speed)
    assert done.returncode == 64
    assert "expected a factor such as 2, or max" in done.stderr
