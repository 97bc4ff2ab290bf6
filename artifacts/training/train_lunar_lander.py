"""Trains `lunar-lander`: PPO on Gymnasium's LunarLander-v3, with the settings of rl-baselines3-zoo."""

from __future__ import annotations

from functools import partial

from ppo import Recipe, parse_arguments, train_and_publish
from stable_baselines3.common.env_util import make_vec_env

from pillion_artifacts.card.model_card import Environment

ENVIRONMENT = Environment(id="LunarLander-v3")

RECIPE = Recipe(
    name="lunar-lander",
    description="Lands a craft between two flags from its position, speed, angle and leg contacts.",
    script="artifacts/training/train_lunar_lander.py",
    environment=ENVIRONMENT,
    make_environments=partial(make_vec_env, ENVIRONMENT.id, 16),
    make_evaluation=partial(make_vec_env, ENVIRONMENT.id, 16),
    hyperparameters={
        "n_steps": 1024,
        "batch_size": 64,
        "n_epochs": 4,
        "gamma": 0.999,
        "gae_lambda": 0.98,
        "ent_coef": 0.01,
        "policy_kwargs": {"net_arch": [64, 64]},
    },
    evaluate_every=4 * 16_384,
    evaluation_episodes=64,
    tools=("box2d",),
)

if __name__ == "__main__":
    train_and_publish(
        RECIPE,
        parse_arguments(
            __doc__, timesteps=1_500_000, target=250.0, seconds_max=900.0, episodes=100, out="artifacts/examples"
        ),
    )
