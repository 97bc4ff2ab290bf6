"""Makes `cart-pole-pixels` from `cart-pole`: the student sees frames, the teacher the state (DAgger).

Stéphane Ross, Geoffrey Gordon and Drew Bagnell, "A Reduction of Imitation Learning and Structured Prediction
to No-Regret Online Learning", AISTATS 2011: the student plays, the teacher labels each step with its own action,
and the student learns from all steps so far.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from demonstrations import Episode, Floats, Task, UInt8s, collect, start_worker
from export import CategoricalActor, discrete_card, export_onnx, measure_and_publish, observation_card, tool_versions
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pillion_artifacts import ModelCard, Store
from pillion_artifacts.card.environments import make_environment
from pillion_artifacts.card.model_card import Distribution, Environment, Lineage, Wrapper

SIDE = 84
STACK = 4
PROCESSES = 2
ROWS = 128
ROUNDS_WITH_TEACHER = 2  # the teacher acts in fewer steps each round, and in none from this round on
SHARPNESS = 2.0  # a factor on the teacher's logits, because its most likely action matters most
FIRST_SEED = 1_000_000  # far from the seeds of the card's metric
ENVIRONMENT = Environment(
    id="CartPole-v1",
    kwargs={"render_mode": "rgb_array"},
    wrappers=[
        Wrapper("AddRenderObservation", {"render_only": True}),
        Wrapper("ResizeObservation", {"shape": [SIDE, SIDE]}),
        Wrapper("GrayscaleObservation"),
        Wrapper("FrameStackObservation", {"stack_size": STACK}),
    ],
)


class Differences(nn.Module):
    """Makes the first convolution learn from the newest frame and its differences to the frames 1, 2 and 3 steps before.

    Only a few pixels of the image move. This is a linear map of the weights: the exported graph has a plain
    convolution over plain frames.
    """

    map: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("map", 2 * torch.tensor([[0, 0, 0, 0.5], [0, 0, -1, 1], [0, -1, 0, 1], [-1, 0, 0, 1]]))

    def forward(self, weight: Tensor) -> Tensor:
        return torch.einsum("oihw,ij->ojhw", weight, self.map)


class PixelNet(nn.Module):
    """Maps uint8 [rows, 4, 84, 84] to features [rows, 128], with the convolutions of Mnih et al., Nature 2015."""

    def __init__(self, first: nn.Conv2d) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            first,
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 128),
            nn.ReLU(),
        )

    def forward(self, observation: Tensor) -> Tensor:
        features: Tensor = self.layers(observation.to(torch.float32) / 255)
        return features


class Demonstrations:
    """All steps collected so far. Each frame is stored once; stacks are built on demand."""

    def __init__(self) -> None:
        self._frames: list[UInt8s] = []
        self._episodes: list[Episode] = []

    def add(self, episodes: list[Episode]) -> None:
        self._episodes.extend(episodes)
        self.frames: UInt8s = np.concatenate([episode.frames for episode in self._episodes])
        self.states: Floats = np.concatenate([episode.states for episode in self._episodes])
        self.logits: Floats = np.concatenate([episode.logits for episode in self._episodes])
        lengths = [len(episode.frames) for episode in self._episodes]
        self.starts: npt.NDArray[np.int64] = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)

    def __len__(self) -> int:
        return len(self.frames)

    def rows(self, steps: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns frame stacks, states and the teacher's logits. An episode's first frame stands for those before it."""
        newest_last = steps[:, np.newaxis] + np.arange(1 - STACK, 1)
        indices = np.maximum(newest_last, self.starts[steps][:, np.newaxis])
        return (
            torch.from_numpy(self.frames[indices]),
            torch.from_numpy(self.states[steps]),
            torch.from_numpy(self.logits[steps]),
        )


class Student:
    """The network and its training. A second head predicts the state, which makes the convolutions learn faster."""

    def __init__(self, states: int, actions: int, seed: int) -> None:
        torch.manual_seed(seed)
        self._random = np.random.default_rng(seed)
        first = nn.Conv2d(STACK, 32, 8, stride=4)
        parametrize.register_parametrization(first, "weight", Differences())
        self.features = PixelNet(first)
        self.logits = nn.Linear(128, actions)
        self.state = nn.Linear(128, states)
        parts = nn.ModuleList([self.features, self.logits, self.state])
        self._optimizer = torch.optim.Adam(parts.parameters())

    def learn(self, data: Demonstrations, updates: int, rates: tuple[float, float]) -> npt.NDArray[np.float64]:
        """Makes `updates` updates, with a learning rate that goes linearly from the first of `rates` to the second.

        Returns the mean action loss, the share of actions that equal the teacher's, and the mean state loss.
        """
        scale = torch.from_numpy(data.states.std(axis=0))
        figures = []
        for update in range(updates):
            for group in self._optimizer.param_groups:
                group["lr"] = rates[0] + (rates[1] - rates[0]) * update / updates
            observation, state, teacher = data.rows(self._random.integers(len(data), size=ROWS))
            features = self.features(observation)
            logits = self.logits(features)
            action_loss = nn.functional.cross_entropy(logits, (SHARPNESS * teacher).softmax(dim=1))
            state_loss = nn.functional.mse_loss(self.state(features), state / scale)
            self._optimizer.zero_grad()
            (action_loss + 2 * state_loss).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            agreement = (logits.argmax(dim=1) == teacher.argmax(dim=1)).float().mean()
            figures.append((float(action_loss.detach()), float(agreement), float(state_loss.detach())))
        latest: npt.NDArray[np.float64] = np.mean(figures[-200:], axis=0)
        return latest

    def onnx(self, space: spaces.Box) -> bytes:
        """Returns the student as an ONNX file."""
        features = PixelNet(nn.Conv2d(STACK, 32, 8, stride=4))
        # Reading the parametrized weight returns the plain weight that it stands for.
        weights = {"layers.0.weight": self.features.layers[0].weight}
        weights |= {name: value for name, value in self.features.state_dict().items() if "parametrizations" not in name}
        features.load_state_dict(weights)
        return export_onnx(CategoricalActor(nn.Sequential(features, self.logits)), space)


def distil(teacher: bytes, space: spaces.Box, arguments: argparse.Namespace) -> tuple[bytes, int]:
    """Trains the student; returns its ONNX file and the number of timesteps that it learned from."""
    started = time.monotonic()
    student = Student(states=4, actions=2, seed=arguments.seed)
    data = Demonstrations()
    model: bytes | None = None
    context = multiprocessing.get_context("spawn")
    with context.Pool(PROCESSES, start_worker, (ENVIRONMENT, teacher)) as pool:
        for iteration in range(arguments.iterations):
            last = iteration == arguments.iterations - 1
            episodes = _collect(pool, model, iteration, arguments)
            data.add(episodes)
            collected = time.monotonic() - started
            updates = arguments.last_updates if last else arguments.updates
            loss, agreement, state_loss = student.learn(data, updates, (5e-4, 2e-5 if last else 5e-4))
            model = student.onnx(space)
            returns = [episode.total_reward for episode in episodes]
            print(
                f"{'student' if iteration else 'teacher'} {np.mean(returns):8.2f} over {len(returns)} episodes, "
                f"{len(data)} timesteps, {collected:.0f} s; loss {loss:.3f}, "
                f"agreement {agreement:.3f}, state loss {state_loss:.3f}, {time.monotonic() - started:.0f} s",
                flush=True,
            )
        # Without this the block would call terminate(), whose signal SDL ignores, and the workers would never exit.
        pool.close()
        pool.join()
    assert model is not None
    return model, len(data)


def _collect(pool: Pool, model: bytes | None, iteration: int, arguments: argparse.Namespace) -> list[Episode]:
    tasks = [
        Task(
            student=model,
            timesteps=arguments.timesteps // (arguments.iterations * PROCESSES),
            seed=FIRST_SEED * (arguments.seed + 1) + 10_000 * (iteration * PROCESSES + process),
            teacher_share=max(0.0, 1 - iteration / ROUNDS_WITH_TEACHER),
            noise=0.1 if iteration == 0 else 0.0,
        )
        for process in range(PROCESSES)
    ]
    return [episode for episodes in pool.map(collect, tasks, chunksize=1) for episode in episodes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=24_000, help="number of timesteps to collect")
    parser.add_argument("--iterations", type=int, default=6, help="number of rounds of collecting and learning")
    parser.add_argument("--updates", type=int, default=250, help=f"updates of {ROWS} rows in each round")
    parser.add_argument("--last-updates", type=int, default=1_000, help="updates in the last round")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--episodes", type=int, default=30, help="number of episodes for the card's metric")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--teacher", default="cart-pole", help="NAME or NAME@VERSION in the store --teachers")
    parser.add_argument("--teachers", type=Path, default=Path("out/teachers"), help="the store of the teacher")
    parser.add_argument("--out", type=Path, default=Path("artifacts/examples"), help="the store to publish into")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    environment = make_environment(ENVIRONMENT)
    observation, action = environment.observation_space, environment.action_space
    environment.close()
    assert isinstance(observation, spaces.Box)
    assert isinstance(action, spaces.Discrete)
    teacher = Store(arguments.teachers).load(arguments.teacher)
    onnx_model, timesteps = distil(teacher.model, observation, arguments)

    card = ModelCard(
        schema=3,
        name="cart-pole-pixels",
        version="1.0.0",
        description="Balances a pole on a cart from the last four frames of the screen, in shades of grey.",
        licence="Apache-2.0",
        observation=[observation_card(observation)],
        outputs=[discrete_card(action)],
        distribution=Distribution(kind="categorical", logits="logits"),
        environment=ENVIRONMENT,
        lineage=Lineage(
            script="artifacts/training/distil_cart_pole_pixels.py",
            algorithm="DAgger",
            timesteps=timesteps,
            seed=arguments.seed,
            parent=teacher.digest,
            tool_versions=tool_versions("opencv-python-headless", "pygame-ce"),
        ),
    )
    measure_and_publish(card, onnx_model, arguments.episodes, arguments.out)


if __name__ == "__main__":
    main()
