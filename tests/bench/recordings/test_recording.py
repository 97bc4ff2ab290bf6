"""A recording survives its file unchanged; any other file is refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pillion_artifacts.card.model_card import Environment, Tolerance, Wrapper
from pillion_bench.errors import RecordingError
from pillion_bench.recordings.recording import Recording


def make_recording(steps: int = 20, **changes: Any) -> Recording:
    """An image recording of two episodes. Each step shifts the stacked frames by one."""
    generator = np.random.default_rng(3)
    frames = generator.integers(0, 255, (steps + 3, 84, 84), dtype=np.uint8)
    starts = np.zeros(steps, bool)
    starts[[0, steps // 2]] = True
    fields: dict[str, Any] = {
        "policy": "imagined",
        "version": "1.2.3",
        "digest": "sha256:" + "ab" * 32,
        "environment": Environment("Imagined-v0", kwargs={"size": 84}, wrappers=[Wrapper("FrameStackObservation")]),
        "tolerance": Tolerance(1e-4, 1e-3),
        "tools": {"numpy": "2"},
        "observation": {"image": np.stack([frames[step : step + 4] for step in range(steps)])},
        "action": {"action": np.arange(steps), "value": generator.standard_normal(steps).astype(np.float32)},
        "reward": generator.standard_normal(steps),
        "terminated": np.zeros(steps, bool),
        "truncated": np.zeros(steps, bool),
        "episode_start": starts,
        "step_time_ns": np.arange(steps) * 1_000_000,
        "seed": np.array([4, 5]),
    }
    return Recording(**{**fields, **changes})


def rewrite(path: Path, metadata: dict[str, str] | None = None, **tensors: Any) -> None:
    """Changes metadata and tensors of a file. None removes a tensor."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        kept = dict(file.metadata())
    held: dict[str, Any] = {**load_file(path), **tensors}
    save_file({name: array for name, array in held.items() if array is not None}, path, {**kept, **(metadata or {})})


def test_a_loaded_recording_equals_the_saved_one(tmp_path: Path) -> None:
    recording = make_recording()
    recording.save(tmp_path / "a.safetensors")
    result = Recording.load(tmp_path / "a.safetensors")
    for field in msgspec.structs.fields(Recording):
        expected, found = getattr(recording, field.name), getattr(result, field.name)
        if isinstance(expected, dict):
            assert list(expected) == list(found)
            for name in expected:
                np.testing.assert_array_equal(expected[name], found[name])
        else:
            np.testing.assert_array_equal(expected, found)


def test_stacked_frames_are_stored_about_once(tmp_path: Path) -> None:
    recording = make_recording(steps=100)
    path = tmp_path / "a.safetensors"
    recording.save(path)
    assert path.stat().st_size < recording.observation["image"].nbytes / 3


def test_the_returns_are_those_of_each_episode() -> None:
    recording = make_recording()
    np.testing.assert_allclose(recording.returns(), [recording.reward[:10].sum(), recording.reward[10:].sum()])


def test_a_file_has_no_path_of_the_machine_that_made_it(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    make_recording().save(path)
    assert str(tmp_path).encode() not in path.read_bytes()


def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(RecordingError, match="not a safetensors file"):
        Recording.load(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"none\.safetensors"):
        Recording.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("metadata", "tensors", "complaint"),
    [
        ({"format": "other"}, {}, "expected pillion.recording 1, got other 1"),
        ({"format_version": "9"}, {}, "expected pillion.recording 1, got pillion.recording 9"),
        ({"compressed": "{"}, {}, r"a\.safetensors: "),
        ({}, {"reward": None}, "key 'reward' is missing"),
        ({}, {"reward": np.zeros(3)}, r"reward: expected float64 \[20\], got float64 \[3\]"),
        ({}, {"seed": np.array([4])}, r"seed: expected int64 \[2\], got int64 \[1\]"),
        ({}, {"episode_start": np.roll(np.eye(1, 20, 0, dtype=bool)[0], 1), "seed": np.array([1])}, "an episode that begins at the first"),
        ({}, {"step_time_ns": np.arange(20)[::-1].copy()}, "expected times in ascending order"),
        ({}, {"action.action": np.zeros(3)}, r"action: expected 20 steps, got shape \[3\]"),
        ({}, {"observation.image": np.zeros(9, np.uint8)}, r"a\.safetensors: "),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_with_the_reason(
    tmp_path: Path, metadata: dict[str, str], tensors: dict[str, Any], complaint: str
) -> None:
    path = tmp_path / "a.safetensors"
    make_recording().save(path)
    rewrite(path, metadata, **tensors)
    with pytest.raises(RecordingError, match=complaint):
        Recording.load(path)


def test_a_compressed_tensor_that_is_larger_than_declared_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    make_recording().save(path)
    claim = {"observation.image": {"codec": "deflate", "dtype": "uint8", "shape": [20, 4]}}
    rewrite(path, {"compressed": msgspec.json.encode(claim).decode()})
    with pytest.raises(RecordingError, match="expected 80 bytes, got more"):
        Recording.load(path)
