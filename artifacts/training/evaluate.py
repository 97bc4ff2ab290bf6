"""Measures an ONNX policy in the environment that its card names.

As a script: repeats the measurement in the card of a stored policy.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from pillion_artifacts import ModelCard, Store
from pillion_artifacts.card.environments import make_environment
from pillion_artifacts.card.model_card import Metric

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

Act = Callable[[npt.NDArray[Any]], int]


def onnx_session(model: bytes) -> onnxruntime.InferenceSession:
    """Returns a session with one CPU thread: these models are small, and the environments need the other cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def onnx_actor(model: bytes) -> Act:
    """Returns a function from one observation (no row axis) to the graph's own deterministic, discrete action."""
    session = onnx_session(model)

    def act(observation: npt.NDArray[Any]) -> int:
        (action,) = session.run(["action"], {"observation": observation[np.newaxis]})
        return int(np.asarray(action)[0])

    return act


def episode_return(environment: Any, act: Act, seed: int) -> float:
    """Plays one episode from `reset(seed=seed)`; returns its undiscounted return."""
    observation, _ = environment.reset(seed=seed)
    total = 0.0
    ended = False
    while not ended:
        observation, reward, terminated, truncated, _ = environment.step(act(observation))
        total += float(reward)
        ended = terminated or truncated
    return total


def mean_return(card: ModelCard, model: bytes, *, episodes: int, first_seed: int = 1000) -> Metric:
    """Returns the mean return over episodes with seeds `first_seed`, `first_seed + 1`, …. The card must name an environment."""
    assert card.environment is not None
    environment = make_environment(card.environment)
    act = onnx_actor(model)
    try:
        returns = [episode_return(environment, act, first_seed + episode) for episode in range(episodes)]
    finally:
        environment.close()
    return Metric(
        value=round(float(np.mean(returns)), 2),
        standard_deviation=round(float(np.std(returns)), 2),
        episodes=episodes,
        first_seed=first_seed,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policy", help="NAME or NAME@VERSION")
    parser.add_argument("--store", type=Path, default=Path("artifacts/examples"))
    parser.add_argument("--episodes", type=int, default=0, help="0: as many as the card's metric has")
    arguments = parser.parse_args()
    artifact = Store(arguments.store).load(arguments.policy)
    stated = artifact.card.metrics["mean_return"]
    episodes = arguments.episodes or stated.episodes
    measured = mean_return(artifact.card, artifact.model, episodes=episodes, first_seed=stated.first_seed)
    print(f"{artifact.policy}@{artifact.version}")
    for title, metric in (("card", stated), ("now", measured)):
        print(f"  {title:5} {metric.value:8.2f} ± {metric.standard_deviation:.2f} over {metric.episodes} episodes")


if __name__ == "__main__":
    main()
