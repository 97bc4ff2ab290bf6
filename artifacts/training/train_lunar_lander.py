"""Trains `lunar-lander`: PPO on Gymnasium's LunarLander-v3, with the settings of rl-baselines3-zoo."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
import torch
from best_policy import BestPolicy
from evaluate import mean_return
from export import CategoricalActor, discrete_card, export_onnx, observation_card, tool_versions, write_artifact
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from torch import nn

from pillion_artifacts import ModelCard
from pillion_artifacts.card.model_card import Distribution, Environment, Lineage

ENVIRONMENT = Environment(id="LunarLander-v3")
EVALUATION_SEED = 500_000


def train(timesteps: int, seed: int, target: float, seconds_max: float) -> tuple[PPO, int]:
    """The best policy of the run, and the timesteps it had seen."""
    environments = make_vec_env(ENVIRONMENT.id, n_envs=16, seed=seed)
    others = make_vec_env(ENVIRONMENT.id, n_envs=16, seed=EVALUATION_SEED)
    model = PPO(
        "MlpPolicy",
        environments,
        n_steps=1024,
        batch_size=64,
        n_epochs=4,
        gamma=0.999,
        gae_lambda=0.98,
        ent_coef=0.01,
        policy_kwargs={"net_arch": [64, 64]},
        seed=seed,
        device="cpu",
    )
    best = BestPolicy(others, every=4 * 16_384, episodes=64, target=target, seconds_max=seconds_max)
    try:
        model.learn(timesteps, callback=best)
    finally:
        environments.close()
        others.close()
    return model, best.restore()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=1_500_000, help="at most so many")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--target", type=float, default=250.0, help="stop at this mean return")
    parser.add_argument("--seconds-max", type=float, default=900.0, help="stop after so long")
    parser.add_argument("--episodes", type=int, default=100, help="episodes that the card's metric rests on")
    parser.add_argument("--out", type=Path, default=Path("artifacts/examples"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, timesteps = train(arguments.timesteps, arguments.seed, arguments.target, arguments.seconds_max)

    policy = model.policy
    observation, action = model.observation_space, model.action_space
    assert isinstance(observation, spaces.Box)
    assert isinstance(action, spaces.Discrete)
    module = CategoricalActor(nn.Sequential(policy.mlp_extractor.policy_net, policy.action_net))
    onnx_model = export_onnx(module, observation)
    card = ModelCard(
        schema=2,
        name="lunar-lander",
        version="1.0.0",
        description="Lands a craft between two flags from its position, speed, angle and leg contacts.",
        licence="Apache-2.0",
        observation=[observation_card(observation)],
        outputs=[discrete_card(action)],
        distribution=Distribution(kind="categorical", logits="logits"),
        environment=ENVIRONMENT,
        lineage=Lineage(
            script="artifacts/training/train_lunar_lander.py",
            algorithm="PPO",
            timesteps=timesteps,
            seed=arguments.seed,
            tool_versions=tool_versions("stable-baselines3", "box2d"),
        ),
    )
    metric = mean_return(card, onnx_model, episodes=arguments.episodes)
    digest = write_artifact(arguments.out, msgspec.structs.replace(card, metrics={"mean_return": metric}), onnx_model)
    print(f"{card.name}@{card.version} {digest}: {len(onnx_model)} bytes, {metric}")


if __name__ == "__main__":
    main()
