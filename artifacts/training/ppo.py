"""PPO with Stable-Baselines3: what the training scripts share, from the command line to the published artifact."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from best_policy import BestPolicy
from export import (
    CategoricalActor,
    CategoricalActorCritic,
    discrete_card,
    export_onnx,
    measure_and_publish,
    observation_card,
    tool_versions,
)
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from pillion_artifacts import ModelCard
from pillion_artifacts.card.model_card import Distribution, Environment, Lineage, TensorCard

EVALUATION_SEED = 500_000
"""Of the episodes that choose the best policy: far from the seeds of training and of the card's metric."""


def make_actor(policy: Any) -> CategoricalActor:
    """Returns the actor of a Stable-Baselines3 policy."""
    return CategoricalActor(nn.Sequential(policy.mlp_extractor.policy_net, policy.action_net))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that one training script decides."""

    name: str
    description: str
    script: str
    """The path of the script in the repository, for the card."""
    environment: Environment
    """What the card names, and what the policy is measured in."""
    make_environments: Callable[[int], VecEnv]
    """Creates the training environments from a seed."""
    make_evaluation: Callable[[int], VecEnv]
    """Creates the environments that choose the best policy, from a seed."""
    hyperparameters: dict[str, Any]
    """The keyword arguments of `PPO`."""
    evaluate_every: int
    """Timesteps between two evaluations."""
    evaluation_episodes: int
    make_module: Callable[[Any], CategoricalActor | CategoricalActorCritic] = make_actor
    """Creates the exported module from the trained Stable-Baselines3 policy."""
    more_outputs: list[TensorCard] = field(default_factory=list)
    """The module's outputs after the action, without the logits."""
    tools: tuple[str, ...] = ()
    """Distributions whose versions the card has too."""


def parse_arguments(
    description: str | None, *, timesteps: int, seconds_max: float, episodes: int, out: str, target: float | None = None
) -> argparse.Namespace:
    """Parses the command line; the keyword arguments are its defaults. Without `target` there is no such option."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--timesteps", type=int, default=timesteps, help="train for at most this many timesteps")
    parser.add_argument("--seed", type=int, default=7)
    if target is None:
        parser.set_defaults(target=float("inf"))
    else:
        parser.add_argument("--target", type=float, default=target, help="stop at this mean return")
    parser.add_argument("--seconds-max", type=float, default=seconds_max, help="stop after this many seconds")
    parser.add_argument("--episodes", type=int, default=episodes, help="number of episodes for the card's metric")
    parser.add_argument("--out", type=Path, default=Path(out), help="the store to publish into")
    return parser.parse_args()


def train_and_publish(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Trains, exports, measures and publishes the policy of a recipe, and prints its digest and metric."""
    torch.set_num_threads(1)
    model, timesteps = _train(recipe, arguments)
    observation, action = model.observation_space, model.action_space
    assert isinstance(observation, spaces.Box)
    assert isinstance(action, spaces.Discrete)
    onnx_model = export_onnx(recipe.make_module(model.policy), observation)
    card = ModelCard(
        schema=3,
        name=recipe.name,
        version="1.0.0",
        description=recipe.description,
        licence="Apache-2.0",
        observation=[observation_card(observation)],
        outputs=[discrete_card(action), *recipe.more_outputs],
        distribution=Distribution(kind="categorical", logits="logits"),
        environment=recipe.environment,
        lineage=Lineage(
            script=recipe.script,
            algorithm="PPO",
            timesteps=timesteps,
            seed=arguments.seed,
            tool_versions=tool_versions("stable-baselines3", *recipe.tools),
        ),
    )
    measure_and_publish(card, onnx_model, arguments.episodes, arguments.out)


def _train(recipe: Recipe, arguments: argparse.Namespace) -> tuple[PPO, int]:
    """Returns the best policy of the run, and the timesteps after which it was measured."""
    environments = recipe.make_environments(arguments.seed)
    evaluation = recipe.make_evaluation(EVALUATION_SEED)
    model = PPO("MlpPolicy", environments, seed=arguments.seed, device="cpu", **recipe.hyperparameters)
    best = BestPolicy(
        evaluation,
        every=recipe.evaluate_every,
        episodes=recipe.evaluation_episodes,
        target=arguments.target,
        seconds_max=arguments.seconds_max,
    )
    try:
        model.learn(arguments.timesteps, callback=best)
    finally:
        environments.close()
        evaluation.close()
    return model, best.restore()
