"""`pillion bench record` stores the observations, outputs, rewards and times of every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import pillion
from pillion_artifacts import Store
from pillion_artifacts.card.model_card import Environment, Tolerance
from pillion_bench.errors import BadOptionError, PlayError
from pillion_bench.recordings.record import (
    RecordOptions,
    _sent,
    environment_action,
    environment_for,
    find_policy,
    record,
)
from pillion_bench.recordings.recording import Recording
from pillion_protocol import TensorSpec
from tests.bench.conftest import run_pillion
from tests.conftest import StartDaemon
from tests.daemon.support.policies.texts import NOTE_ROOM, action_of, publish_reader
from tests.harness import STORE, Daemon


def test_a_recording_holds_every_step(recording: Recording, daemon: Daemon) -> None:
    assert (recording.policy, recording.digest) == ("lunar-lander", Store(STORE).load("lunar-lander").digest)
    assert recording.steps == 100
    assert recording.seed.tolist() == [5, 6]
    assert np.flatnonzero(recording.episode_start).tolist() == [0, 50]
    assert recording.observation["observation"].shape == (100, 8)
    assert recording.observation["observation"].dtype == np.float32
    assert recording.action["action"].dtype == np.int64
    assert recording.environment.id == "LunarLander-v3"
    assert {"python", "numpy", "gymnasium"} <= recording.tools.keys()


def test_the_step_times_begin_at_zero_and_ascend(recording: Recording) -> None:
    assert recording.step_time_ns[0] == 0
    assert (np.diff(recording.step_time_ns) > 0).all()


def test_a_cut_episode_is_neither_terminated_nor_truncated(recording: Recording) -> None:
    assert not recording.terminated.any()
    assert not recording.truncated.any()


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # Box2D crashes where its import warns and a warning is an error
def test_the_rewards_are_those_of_the_environment(recording: Recording) -> None:
    env = gymnasium.make("LunarLander-v3")
    observation, _ = env.reset(seed=5)
    for step in range(50):
        np.testing.assert_array_equal(observation, recording.observation["observation"][step])
        observation, reward, *_ = env.step(int(recording.action["action"][step]))
        assert float(reward) == recording.reward[step]
    env.close()


def test_the_report_describes_the_file(recorded: tuple[Path, dict[str, Any]], recording: Recording) -> None:
    path, report = recorded
    assert report["file"] == str(path)
    assert report["bytes"] == path.stat().st_size
    assert (report["steps"], report["episodes"]) == (100, 2)
    assert report["return_mean"] == pytest.approx(np.mean(recording.returns()), abs=1e-3)


def test_the_card_s_environment_is_used_if_it_has_that_id() -> None:
    artifact = Store(STORE).load("highway-fast")
    assert environment_for(artifact, "highway-fast-v0") == artifact.card.environment
    assert environment_for(artifact, "highway_env:highway-fast-v0") == artifact.card.environment
    other = environment_for(artifact, "package.module:Other-v1")
    assert (other.id, other.module, other.wrappers) == ("Other-v1", "package.module", [])


def test_a_policy_is_found_by_the_environment_of_its_card() -> None:
    assert find_policy(STORE, "highway-fast-v0") == "highway-fast"
    with pytest.raises(BadOptionError, match=r"no policy of the store plays Nothing-v0; choose one of .*lunar-lander"):
        find_policy(STORE, "Nothing-v0")


def test_a_box_action_is_clipped_to_its_bounds() -> None:
    class BoxEnvironment(gymnasium.Env[Any, Any]):
        action_space = spaces.Box(-1.0, 1.0, (2,))

    result = environment_action(BoxEnvironment(), np.array([-3.0, 0.5]))
    assert result.tolist() == [-1.0, 0.5]
    assert result.dtype == np.float32


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ("Nothing-v0", "cannot make Nothing-v0"),
        ("no_such_module:Thing-v0", "cannot make Thing-v0"),
        ("CartPole-v1", "expected shape [8], got [4]"),
    ],
)
def test_an_environment_that_cannot_be_played_is_refused_in_one_line(
    daemon: Daemon, tmp_path: Path, environment: str, complaint: str
) -> None:
    done = run_pillion("bench", "record", environment, "--address", daemon.address, cwd=tmp_path)
    assert done.returncode == 69
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


class Instructed(gymnasium.Env[Any, Any]):
    """Says what to do, in words."""

    observation_space = spaces.Dict(
        {
            "speed": spaces.Box(-1.0, 1.0, (2,)),
            "prompt": spaces.Text(20, charset="abcdefghijklmnopqrstuvwxyzöß"),
            "note": spaces.Text(5, min_length=0),
        }
    )
    action_space = spaces.Box(-np.inf, np.inf, (4,))
    prompts = ("go", "größer", "stop")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.number = 0
        return self._observed(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.number += 1
        return self._observed(), float(action[0]), self.number == len(self.prompts), False, {}

    def _observed(self) -> Any:
        return {"speed": np.zeros(2, np.float32), "prompt": self.prompts[self.number % len(self.prompts)], "note": ""}


def test_the_texts_of_an_environment_are_recorded_as_they_travel(tmp_path: Path, start_daemon: StartDaemon) -> None:
    publish_reader(tmp_path / "store", tmp_path / "made")
    daemon = start_daemon(policy="reader", store=tmp_path / "store")
    gymnasium.register("Instructed-v0", lambda **_: Instructed())
    try:
        with pillion.connect(daemon.address) as session:
            made = record(session, Environment("Instructed-v0"), Tolerance(), RecordOptions(), lambda *_: None)
    finally:
        del gymnasium.registry["Instructed-v0"]
    made.save(tmp_path / "recording.safetensors")
    recording = Recording.load(tmp_path / "recording.safetensors")
    texts = [bytes(row).rstrip(b"\0").decode() for row in recording.observation["prompt"]]
    assert texts == [*Instructed.prompts]
    assert recording.observation["note"].tolist() == [[0] * NOTE_ROOM] * 3
    assert recording.action["action"].tolist() == [action_of(text, "", 0.0) for text in texts]


def test_a_text_of_an_environment_that_does_not_fit_is_named() -> None:
    with pytest.raises(PlayError, match=r"observation 'prompt': .*at most 4 bytes of UTF-8, got 'größer' of 8 bytes"):
        _sent(TensorSpec("prompt", "uint8", [4], "Text"), "größer")
