"""Keeps the best policy of a training run, measured in deterministic episodes, and stops when it is good enough."""

from __future__ import annotations

import copy
import time
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv


class BestPolicy(BaseCallback):
    """Measures the policy every `every` timesteps over `episodes` episodes of `environments`.

    Training stops when their mean return reaches `target`, or after `seconds_max`. `restore()` loads the best weights
    into the model. The caller owns `environments`, which must not be the training environments.
    """

    def __init__(self, environments: VecEnv, *, every: int, episodes: int, target: float, seconds_max: float) -> None:
        super().__init__()
        self.environments = environments
        self.every = every
        self.episodes = episodes
        self.target = target
        self._best_return = -float("inf")
        self._best_timesteps = 0
        self._best_weights: dict[str, Any] = {}
        self._next = every
        self._started = time.monotonic()
        self._seconds_max = seconds_max

    def _on_step(self) -> bool:
        if self.num_timesteps < self._next:
            return True
        self._next += self.every
        returns, _ = evaluate_policy(
            self.model, self.environments, n_eval_episodes=self.episodes, return_episode_rewards=True
        )
        assert isinstance(returns, list)
        mean = sum(returns) / len(returns)
        seconds = time.monotonic() - self._started
        print(f"{self.num_timesteps:>9} timesteps, {seconds:6.0f} s, mean return {mean:8.2f}", flush=True)
        if mean > self._best_return:
            self._best_return = mean
            self._best_timesteps = self.num_timesteps
            self._best_weights = copy.deepcopy(self.model.policy.state_dict())
        return mean < self.target and seconds < self._seconds_max

    def restore(self) -> int:
        """Loads the best weights into the model; returns after how many timesteps they were measured.

        Keeps the last weights if none were measured.
        """
        if not self._best_weights:
            return self.num_timesteps
        self.model.policy.load_state_dict(self._best_weights)
        return self._best_timesteps
