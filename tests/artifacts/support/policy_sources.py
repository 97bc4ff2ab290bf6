"""Policies that the tests publish: real ones beside the checkout, and fresh models of every family."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
import onnxruntime
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm

from pillion_artifacts.card.golden_pairs import Arrays
from pillion_artifacts.publishing.common.draft import Details
from pillion_artifacts.publishing.common.folder import PublishReport, write_folder
from pillion_artifacts.publishing.sb3.source import import_sb3

ROOT = Path(__file__).parents[3]
ROWS = 200


def real_policies() -> Path:
    """The folder of real policies; skips the test where it is absent."""
    folder = Path(os.environ.get("PILLION_SHARED_POLICIES", ROOT.parent / "shared" / "policies"))
    if not folder.is_dir():
        pytest.skip("there are no real policies: ../shared/policies, or set PILLION_SHARED_POLICIES")
    return folder


class Room(gymnasium.Env[Any, Any]):
    """An environment with only spaces; observations are drawn from them."""

    def __init__(self, observation: spaces.Space[Any], action: spaces.Space[Any]) -> None:
        self.observation_space = observation
        self.action_space = action

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


def shake(model: BaseAlgorithm, seed: int = 3) -> None:
    """Sets every weight, so that no bias is zero and no two actions are equally good."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            # less for wide layers, or rounding grows with their sums
            scale = 1.0 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.02
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def draw(space: spaces.Space[Any], rows: int = ROWS, seed: int = 11) -> Any:
    """Rows drawn from a space, as Stable-Baselines3 takes them."""
    space.seed(seed)
    drawn = [space.sample() for _ in range(rows)]
    light = np.random.default_rng(seed).uniform(0, 1, rows)
    if isinstance(space, spaces.Dict):
        return {name: _lit(np.stack([row[name] for row in drawn]), light) for name in space.spaces}
    return _lit(np.stack(drawn), light)


def _lit(values: NDArray[Any], light: NDArray[np.float64]) -> NDArray[Any]:
    """Images of different brightness: to a network, images of uniform noise look the same."""
    if values.dtype != np.uint8:
        return values
    return (values * light.reshape(-1, 1, 1, 1)).astype(np.uint8)


def by_name(observation: Any) -> Arrays:
    """The same rows by the names in the card."""
    return observation if isinstance(observation, dict) else {"observation": observation}


def publish_sb3(model: BaseAlgorithm, folder: Path, statistics: bytes | None = None) -> PublishReport:
    """Saves the model and imports the zip into `folder`."""
    file = folder / "source.zip"
    model.save(file)
    draft = import_sb3(file.read_bytes(), file.name, Details(name="made-here", version="1.0.0"), statistics)
    return write_folder(folder / "published", draft)


def session(folder: Path | str) -> onnxruntime.InferenceSession:
    """The published model, as any user of ONNX Runtime would load it."""
    return onnxruntime.InferenceSession(str(Path(folder) / "model.onnx"), providers=["CPUExecutionProvider"])


def act(folder: Path | str, inputs: Arrays) -> NDArray[Any]:
    """The actions of the published model."""
    actions: NDArray[Any] = session(folder).run(["action"], inputs)[0]
    return actions
