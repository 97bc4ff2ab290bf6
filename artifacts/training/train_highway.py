"""Trains `highway-fast`: PPO on highway-env's highway-fast-v0, a car that overtakes in dense traffic."""

from __future__ import annotations

from functools import partial
from typing import Any

from export import CategoricalActorCritic
from ppo import Recipe, parse_arguments, train_and_publish
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from torch import nn

from pillion_artifacts.card.environments import make_environment
from pillion_artifacts.card.model_card import Environment, TensorCard

ENVIRONMENT = Environment(id="highway-fast-v0", module="highway_env")
# The training environment differs: fewer cars are twice as fast to simulate, and speed pays more, because PPO
# otherwise ends at a policy that only brakes. The best policy is chosen and measured in the original environment.
TRAINING = Environment(
    id=ENVIRONMENT.id,
    module=ENVIRONMENT.module,
    kwargs={"config": {"vehicles_count": 10, "high_speed_reward": 0.8}},
)
PROCESSES = 4  # more than the cores, so that the slowest step of a round matters less


def make_environments(environment: Environment, seed: int) -> VecEnv:
    """Returns `PROCESSES` environments, each in its own process."""
    return make_vec_env(lambda: make_environment(environment), n_envs=PROCESSES, seed=seed, vec_env_cls=SubprocVecEnv)


def make_module(policy: Any) -> CategoricalActorCritic:
    """Returns the actor and the critic of a Stable-Baselines3 policy."""
    return CategoricalActorCritic(
        logits=nn.Sequential(nn.Flatten(), policy.mlp_extractor.policy_net, policy.action_net),
        value=nn.Sequential(nn.Flatten(), policy.mlp_extractor.value_net, policy.value_net),
    )


RECIPE = Recipe(
    name="highway-fast",
    description=(
        "Drives on a three-lane motorway from the positions and speeds of the own car and its four nearest "
        "neighbours: change lane, faster, slower or keep on."
    ),
    script="artifacts/training/train_highway.py",
    environment=ENVIRONMENT,
    make_environments=partial(make_environments, TRAINING),
    make_evaluation=partial(make_environments, ENVIRONMENT),
    hyperparameters={
        "n_steps": 256,
        "batch_size": 64,
        "n_epochs": 10,
        "learning_rate": 5e-4,
        "gamma": 0.9,
        "ent_coef": 0.02,
        "policy_kwargs": {"net_arch": [128, 128]},
    },
    evaluate_every=8 * 256 * PROCESSES,
    evaluation_episodes=24,
    make_module=make_module,
    more_outputs=[TensorCard("value", "float32"), TensorCard("log_probability", "float32")],
    tools=("highway-env",),
)

if __name__ == "__main__":
    train_and_publish(
        RECIPE,
        parse_arguments(__doc__, timesteps=150_000, seconds_max=1200.0, episodes=50, out="artifacts/examples"),
    )
