"""Trains `highway-fast`: PPO on highway-env's highway-fast-v0, a car that overtakes in dense traffic."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
import torch
from best_policy import BestPolicy
from evaluate import mean_return
from export import CategoricalActorCritic, discrete_card, export_onnx, observation_card, tool_versions, write_artifact
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from torch import nn

from pillion_artifacts import ModelCard
from pillion_artifacts.card.environments import make_environment
from pillion_artifacts.card.model_card import Distribution, Environment, Lineage, TensorCard

ENVIRONMENT = Environment(id="highway-fast-v0", module="highway_env")
# To train in: fewer cars are twice as fast to simulate, and speed pays more, or a policy that only ever brakes
# is where PPO ends. What is measured, and by which the best policy is chosen, is the environment as it is.
TRAINING = Environment(
    id=ENVIRONMENT.id,
    module=ENVIRONMENT.module,
    kwargs={"config": {"vehicles_count": 10, "high_speed_reward": 0.8}},
)
EVALUATION_SEED = 500_000
PROCESSES = 4  # more than the cores: the longest step of a round then weighs less


def train(timesteps: int, seed: int, seconds_max: float) -> tuple[PPO, int]:
    """The best policy of the run, and the timesteps it had seen."""
    environments = _environments(TRAINING, seed)
    others = _environments(ENVIRONMENT, EVALUATION_SEED)
    model = PPO(
        "MlpPolicy",
        environments,
        n_steps=256,
        batch_size=64,
        n_epochs=10,
        learning_rate=5e-4,
        gamma=0.9,
        ent_coef=0.02,
        policy_kwargs={"net_arch": [128, 128]},
        seed=seed,
        device="cpu",
    )
    best = BestPolicy(others, every=8 * 256 * PROCESSES, episodes=24, target=float("inf"), seconds_max=seconds_max)
    try:
        model.learn(timesteps, callback=best)
    finally:
        environments.close()
        others.close()
    return model, best.restore()


def _environments(environment: Environment, seed: int) -> VecEnv:
    return make_vec_env(lambda: make_environment(environment), n_envs=PROCESSES, seed=seed, vec_env_cls=SubprocVecEnv)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=150_000, help="at most so many")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--seconds-max", type=float, default=1200.0, help="stop after so long")
    parser.add_argument("--episodes", type=int, default=50, help="episodes that the card's metric rests on")
    parser.add_argument("--out", type=Path, default=Path("artifacts/examples"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, timesteps = train(arguments.timesteps, arguments.seed, arguments.seconds_max)

    policy = model.policy
    observation, action = model.observation_space, model.action_space
    assert isinstance(observation, spaces.Box)
    assert isinstance(action, spaces.Discrete)
    module = CategoricalActorCritic(
        logits=nn.Sequential(nn.Flatten(), policy.mlp_extractor.policy_net, policy.action_net),
        value=nn.Sequential(nn.Flatten(), policy.mlp_extractor.value_net, policy.value_net),
    )
    onnx_model = export_onnx(module, observation)
    card = ModelCard(
        schema=2,
        name="highway-fast",
        version="1.0.0",
        description=(
            "Drives on a three-lane motorway from the positions and speeds of the own car and its four nearest "
            "neighbours: change lane, faster, slower or keep on."
        ),
        licence="Apache-2.0",
        observation=[observation_card(observation)],
        outputs=[discrete_card(action), TensorCard("value", "float32"), TensorCard("log_probability", "float32")],
        distribution=Distribution(kind="categorical", logits="logits"),
        environment=ENVIRONMENT,
        lineage=Lineage(
            script="artifacts/training/train_highway.py",
            algorithm="PPO",
            timesteps=timesteps,
            seed=arguments.seed,
            tool_versions=tool_versions("stable-baselines3", "highway-env"),
        ),
    )
    metric = mean_return(card, onnx_model, episodes=arguments.episodes)
    digest = write_artifact(arguments.out, msgspec.structs.replace(card, metrics={"mean_return": metric}), onnx_model)
    print(f"{card.name}@{card.version} {digest}: {len(onnx_model)} bytes, {metric}")


if __name__ == "__main__":
    main()
