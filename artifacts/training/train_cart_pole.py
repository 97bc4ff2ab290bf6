"""Trains `cart-pole`, the teacher of `cart-pole-pixels`: PPO on Gymnasium's CartPole-v1."""

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

ENVIRONMENT = Environment(id="CartPole-v1")
EVALUATION_SEED = 500_000


def train(timesteps: int, seed: int, target: float, seconds_max: float) -> tuple[PPO, int]:
    """The best policy of the run, and the timesteps it had seen."""
    environments = make_vec_env(ENVIRONMENT.id, n_envs=8, seed=seed)
    others = make_vec_env(ENVIRONMENT.id, n_envs=16, seed=EVALUATION_SEED)
    model = PPO(
        "MlpPolicy",
        environments,
        n_steps=256,
        batch_size=256,
        n_epochs=10,
        gamma=0.99,
        gae_lambda=0.9,
        learning_rate=1e-3,
        policy_kwargs={"net_arch": [64, 64]},
        seed=seed,
        device="cpu",
    )
    best = BestPolicy(others, every=8 * 2048, episodes=32, target=target, seconds_max=seconds_max)
    try:
        model.learn(timesteps, callback=best)
    finally:
        environments.close()
        others.close()
    return model, best.restore()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=200_000, help="at most so many")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--target", type=float, default=500.0, help="stop at this mean return")
    parser.add_argument("--seconds-max", type=float, default=300.0, help="stop after so long")
    parser.add_argument("--episodes", type=int, default=100, help="episodes that the card's metric rests on")
    parser.add_argument("--out", type=Path, default=Path("out/teachers"))
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
        name="cart-pole",
        version="1.0.0",
        description="Balances a pole on a cart from the positions and speeds of both.",
        licence="Apache-2.0",
        observation=[observation_card(observation)],
        outputs=[discrete_card(action)],
        distribution=Distribution(kind="categorical", logits="logits"),
        environment=ENVIRONMENT,
        lineage=Lineage(
            script="artifacts/training/train_cart_pole.py",
            algorithm="PPO",
            timesteps=timesteps,
            seed=arguments.seed,
            tool_versions=tool_versions("stable-baselines3"),
        ),
    )
    metric = mean_return(card, onnx_model, episodes=arguments.episodes)
    digest = write_artifact(arguments.out, msgspec.structs.replace(card, metrics={"mean_return": metric}), onnx_model)
    print(f"{card.name}@{card.version} {digest}: {len(onnx_model)} bytes, {metric}")


if __name__ == "__main__":
    main()
