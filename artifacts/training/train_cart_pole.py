"""Trains `cart-pole`, the teacher of `cart-pole-pixels`: PPO on Gymnasium's CartPole-v1."""

from __future__ import annotations

from functools import partial

from ppo import Recipe, parse_arguments, train_and_publish
from stable_baselines3.common.env_util import make_vec_env

from pillion_artifacts.card.model_card import Environment

ENVIRONMENT = Environment(id="CartPole-v1")

RECIPE = Recipe(
    name="cart-pole",
    description="Balances a pole on a cart from the positions and speeds of both.",
    script="artifacts/training/train_cart_pole.py",
    environment=ENVIRONMENT,
    make_environments=partial(make_vec_env, ENVIRONMENT.id, 8),
    make_evaluation=partial(make_vec_env, ENVIRONMENT.id, 16),
    hyperparameters={
        "n_steps": 256,
        "batch_size": 256,
        "n_epochs": 10,
        "gamma": 0.99,
        "gae_lambda": 0.9,
        "learning_rate": 1e-3,
        "policy_kwargs": {"net_arch": [64, 64]},
    },
    evaluate_every=8 * 2048,
    evaluation_episodes=32,
)

if __name__ == "__main__":
    train_and_publish(
        RECIPE,
        parse_arguments(__doc__, timesteps=200_000, target=500.0, seconds_max=300.0, episodes=100, out="out/teachers"),
    )
