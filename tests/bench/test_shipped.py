"""Each shipped policy has recordings, made by exactly the shipped artifact."""

from __future__ import annotations

from pathlib import Path

import pytest

from pillion_artifacts import Store
from pillion_bench.limits import DEMO_REPLAY_S_MAX
from pillion_bench.measurements.demo import pace_of
from pillion_bench.recordings.recording import Recording
from pillion_bench.shipped import episodes_folder, examples_folder, recorded_policies, recordings
from tests.harness import ROOT, STORE

RECORDING_BYTES_MAX = 400_000


def test_an_editable_install_uses_the_folders_of_the_repository() -> None:
    assert examples_folder() == ROOT / "artifacts" / "examples"
    assert episodes_folder() == ROOT / "bench" / "episodes"


def test_recordings_of_every_policy_ship() -> None:
    assert recorded_policies() == Store(STORE).policies()


@pytest.mark.parametrize("path", [path for policy in recorded_policies() for path in recordings(policy)], ids=str)
def test_a_shipped_recording_was_made_by_the_shipped_artifact(path: Path) -> None:
    recording = Recording.load(path)
    artifact = Store(STORE).load(path.parent.name)
    assert (recording.policy, recording.version, recording.digest) == (
        path.parent.name,
        artifact.version,
        artifact.digest,
    )
    assert recording.environment == artifact.card.environment
    assert recording.tolerance == artifact.card.tolerance
    assert path.stat().st_size <= RECORDING_BYTES_MAX


def test_the_demo_keeps_the_recorded_pace_if_that_is_fast_enough() -> None:
    assert pace_of(DEMO_REPLAY_S_MAX / 2) == 1.0
    assert pace_of(DEMO_REPLAY_S_MAX * 4) == pytest.approx(4.0)
