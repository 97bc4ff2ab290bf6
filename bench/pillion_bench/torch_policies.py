"""Policies in torch, and the factories that make the same of weights. Needs torch: it is imported when an engine asks for it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_LAYERS: Final = "logits."
"""How the names of the weights begin in the graph of the image policy."""

Arrays = dict[str, NDArray[Any]]


class ImagePolicy(nn.Module):
    """The network of `cart-pole-pixels`: uint8 [rows, 4, 84, 84] to an int64 action [rows] and float32 logits [rows, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            *(nn.Conv2d(4, 32, 8, stride=4), nn.ReLU()),
            *(nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()),
            *(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 2)),
        )

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(observation.float() / 255)
        return logits.argmax(dim=1), logits


class TablePolicy(nn.Module):
    """The sum of the rows of a table [n, width] that int64 [rows, 8] name: float32 [rows, width]. It is nearly all weights."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, observation: Tensor) -> Tensor:
        return nn.functional.embedding(observation, self.table).sum(dim=1)


def shipped_image() -> ImagePolicy:
    """Returns the image policy that ships."""
    # The factories below run where nothing but torch may be installed.
    from onnx import load_from_string, numpy_helper

    from pillion_artifacts import Store
    from pillion_bench.shipped import IMAGE, examples_folder

    graph = load_from_string(Store(examples_folder()).load(IMAGE).model).graph
    arrays = [numpy_helper.to_array(each) for each in graph.initializer if each.name.startswith(_LAYERS)]
    module = ImagePolicy().eval()
    with torch.no_grad():
        for parameter, array in zip(module.parameters(), arrays, strict=True):
            parameter.copy_(torch.from_numpy(np.array(array)))
    return module


def make_image(weights: Arrays) -> Callable[[Arrays], dict[str, Tensor]]:
    """Returns `ImagePolicy` as a Python policy. `weights` are its own, by name."""
    module = ImagePolicy().eval()
    module.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights.items()})
    # It only reads them.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

    def policy(observations: Arrays) -> dict[str, Tensor]:
        with torch.inference_mode():
            action, logits = module(torch.from_numpy(observations["observation"]))
        return {"action": action, "logits": logits}

    return policy


def make_table(weights: Arrays) -> Callable[[Arrays], Arrays]:
    """Returns `TablePolicy` as a Python policy, without torch. `weights` are its `table`."""
    table = weights["table"]
    return lambda observations: {"action": table[observations["observation"]].sum(axis=1)}
