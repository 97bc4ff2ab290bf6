"""What ships fits together: each policy has recordings, made by the very artifact that ships."""

from __future__ import annotations

from pathlib import Path

import pytest

from pillion_artifacts import Store
from pillion_bench.measurements.demo import REPLAY_S_MAX, pace_of
from pillion_bench.recordings.recording import Recording
from pillion_bench.shipped import episodes_folder, examples_folder, recorded_policies, recordings
from tests.harness import ROOT, STORE

RECORDING_BYTES_MAX = 400_000


def test_an_editable_install_reads_the_folders_of_the_repository() -> None:
    assert examples_folder() == ROOT / "artifacts" / "examples"
    assert episodes_folder() == ROOT / "bench" / "episodes"


def test_recordings_of_every_policy_ship() -> None:
    assert recorded_policies() == Store(STORE).policies()


@pytest.mark.parametrize("path", [path for policy in recorded_policies() for path in recordings(policy)], ids=str)
def test_a_recording_that_ships_was_made_by_the_artifact_that_ships(path: Path) -> None:
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


def test_the_demo_keeps_to_the_recorded_pace_where_that_is_quick_enough() -> None:
    assert pace_of(REPLAY_S_MAX / 2) == 1.0
    assert pace_of(REPLAY_S_MAX * 4) == pytest.approx(4.0)
