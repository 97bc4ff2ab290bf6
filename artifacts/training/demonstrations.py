"""Episodes as frames, with the action scores of a teacher that sees the state itself, for every step.

Every worker process owns its environment and its ONNX sessions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from evaluate import onnx_actor, onnx_session

from pillion_artifacts.card.environments import wrap
from pillion_artifacts.card.model_card import Environment

UInt8s = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Task:
    """What one worker collects: complete episodes, until they have `timesteps` in all.

    `student`: the ONNX file of the policy that acts; None: the teacher acts. `teacher_share`: the share of steps in
    which the teacher acts anyway. `noise`: the share of steps with a random action.
    """

    student: bytes | None
    timesteps: int
    seed: int
    teacher_share: float
    noise: float


@dataclass(frozen=True)
class Episode:
    """The newest frame, the state and the teacher's logits of every step, and the return of the episode."""

    frames: UInt8s
    """uint8 [steps, height, width]"""
    states: Floats
    """float32 [steps, n]"""
    logits: Floats
    """float32 [steps, actions]"""
    total_reward: float


class StateKeeper(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Keeps the state, which the wrappers around it replace by an image."""

    state: npt.NDArray[Any]

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.state, info = super().reset(**kwargs)
        return self.state, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.state, reward, terminated, truncated, info = super().step(action)
        return self.state, reward, terminated, truncated, info


class Worker:
    """Plays episodes of `environment` in its own process. The environment closes with the process."""

    def __init__(self, environment: Environment, teacher: bytes) -> None:
        self._keeper = StateKeeper(gymnasium.make(environment.id, **environment.kwargs))
        self._environment = wrap(self._keeper, environment.wrappers)
        self._teacher = onnx_session(teacher)

    def collect(self, task: Task) -> list[Episode]:
        """Returns the episodes of a task. The same task always returns the same episodes."""
        random = np.random.default_rng(task.seed)
        episodes: list[Episode] = []
        while sum(len(episode.frames) for episode in episodes) < task.timesteps:
            episodes.append(self._episode(task, task.seed + len(episodes), random))
        return episodes

    def _episode(self, task: Task, seed: int, random: np.random.Generator) -> Episode:
        student = onnx_actor(task.student) if task.student else None
        frames, states, logits = [], [], []
        total, ended = 0.0, False
        observation, _ = self._environment.reset(seed=seed)
        while not ended:
            state = np.asarray(self._keeper.state, np.float32)
            (scores,) = self._teacher.run(["logits"], {"observation": state[np.newaxis]})
            frames.append(observation[-1].copy())
            states.append(state)
            logits.append(np.asarray(scores)[0])
            if random.random() < task.noise:
                action = int(random.integers(len(logits[-1])))
            elif student is None or random.random() < task.teacher_share:
                action = int(logits[-1].argmax())
            else:
                action = student(observation)
            observation, reward, terminated, truncated, _ = self._environment.step(action)
            total += float(reward)
            ended = terminated or truncated
        return Episode(np.stack(frames), np.stack(states), np.stack(logits), total)


_workers: list[Worker] = []  # this process's own worker, after `start_worker`


def start_worker(environment: Environment, teacher: bytes) -> None:
    """Initializes a process of a pool that runs `collect`."""
    _workers.append(Worker(environment, teacher))


def collect(task: Task) -> list[Episode]:
    """Runs a task in this process's worker."""
    return _workers[0].collect(task)
