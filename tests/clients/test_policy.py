"""`pillion.Policy` works as a policy of Stable-Baselines3."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import onnxruntime
import pytest

import pillion
from pillion_artifacts import Artifact, Store
from tests.harness import STORE, Daemon

OBSERVATION = np.array([0.1, 1.2, 0.0, -0.5, 0.05, 0.0, 0.0, 0.0], dtype=np.float32)
DRIVE: dict[str, Any] = {"camera": np.full((2, 2), 9, np.uint8), "speed": np.ones(2, np.float32), "gear": np.array(1)}


@pytest.fixture
def policy(daemon: Daemon) -> Iterator[pillion.Policy]:
    with pillion.Policy(daemon.address, policy="lunar-lander", seed=3) as policy:
        yield policy


def test_one_observation_returns_one_action_without_a_row_axis(policy: pillion.Policy) -> None:
    action, state = policy.predict(OBSERVATION, deterministic=True)
    assert action.shape == ()
    assert action.dtype == np.int64
    assert state is None


def test_several_observations_return_as_many_actions(policy: pillion.Policy) -> None:
    single, _ = policy.predict(OBSERVATION, deterministic=True)
    for rows in (1, 4, 256):
        actions, _ = policy.predict(np.stack([OBSERVATION] * rows), deterministic=True)
        assert actions.tolist() == [single] * rows


def test_the_state_is_returned_unchanged(policy: pillion.Policy) -> None:
    state = (np.zeros(3),)
    assert policy.predict(OBSERVATION, state, np.array([True]), deterministic=True)[1] is state


@pytest.mark.parametrize("starts", [None, np.array([True]), np.array([False]), [True]])
def test_episode_start_is_a_mask_or_none(policy: pillion.Policy, starts: Any) -> None:
    assert policy.predict(OBSERVATION, episode_start=starts)[0].shape == ()
    assert policy.predict(np.stack([OBSERVATION] * 3), episode_start=starts)[0].shape == (3,)


def test_an_invalid_observation_is_refused(policy: pillion.Policy) -> None:
    observations: list[Any] = [np.zeros(7), np.zeros((2, 7)), np.float32(1.0), {}, np.zeros((1, 1, 8))]
    for wrong in observations:
        with pytest.raises(pillion.InvalidObservationError):
            policy.predict(wrong)


def test_the_same_seed_draws_the_same_actions(daemon: Daemon) -> None:
    runs = []
    for _ in range(2):
        with pillion.Policy(daemon.address, seed=11) as policy:
            runs.append([policy.predict(np.stack([OBSERVATION] * 4))[0].tolist() for _ in range(20)])
    assert runs[0] == runs[1]


def test_a_dict_observation_returns_an_action_with_or_without_a_row_axis(driver_daemon: Daemon) -> None:
    with pillion.Policy(driver_daemon.address) as policy:
        single, _ = policy.predict(DRIVE, deterministic=True)
        batched, _ = policy.predict({name: np.stack([value] * 3) for name, value in DRIVE.items()}, deterministic=True)
        assert single.shape == (2,)
        assert np.array_equal(batched, np.stack([single] * 3))


# Stable-Baselines3 itself


class ReseededAtEachReset(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Resets with `first_seed`, `first_seed + 1`, …, as the card's metric was measured."""

    def __init__(self, environment: gymnasium.Env[Any, Any], first_seed: int) -> None:
        super().__init__(environment)
        self._next_seed = first_seed

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._next_seed += 1
        return super().reset(seed=self._next_seed - 1, options=options)


class InProcess:
    """Runs the same model in this process."""

    def __init__(self, model: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:  # fmt: skip
        (actions,) = self._session.run(["action"], {"observation": observation})
        return actions, state


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return Store(STORE).load("lunar-lander")


def returns_of(model: Any, episodes: int, first_seed: int) -> list[float]:
    """Returns what Stable-Baselines3's own evaluation returns for episodes of these seeds."""
    with warnings.catch_warnings():
        # Python 3.11 and later warn that SWIG's types have no module. As an error this ends the interpreter.
        warnings.simplefilter("ignore")
        importlib.import_module("Box2D")
        from stable_baselines3.common.evaluation import evaluate_policy
        from stable_baselines3.common.monitor import Monitor

    environment = Monitor(ReseededAtEachReset(gymnasium.make("LunarLander-v3"), first_seed))
    try:
        returns, lengths = evaluate_policy(
            model, environment, n_eval_episodes=episodes, deterministic=True, return_episode_rewards=True
        )
    finally:
        environment.close()
    assert isinstance(returns, list)
    assert isinstance(lengths, list)
    assert len(returns) == len(lengths) == episodes
    return [float(value) for value in returns]


needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed, and Stable-Baselines3 needs it"
)


@needs_torch
def test_stable_baselines_gets_the_same_returns_from_the_daemon_as_from_the_model_in_process(
    daemon: Daemon, artifact: Artifact
) -> None:
    with pillion.Policy(daemon.address) as policy:
        served = returns_of(policy, episodes=8, first_seed=1000)
    assert served == returns_of(InProcess(artifact.model), episodes=8, first_seed=1000)
    assert len(set(served)) == 8


@needs_torch
def test_evaluate_policy_against_the_daemon_returns_the_mean_return_of_the_card(
    daemon: Daemon, artifact: Artifact
) -> None:
    stated = artifact.card.metrics["mean_return"]
    episodes = 30
    with pillion.Policy(daemon.address) as policy:
        returns = returns_of(policy, episodes, stated.first_seed)
    standard_error = stated.standard_deviation / math.sqrt(episodes)
    assert abs(float(np.mean(returns)) - stated.value) <= 3 * standard_error
