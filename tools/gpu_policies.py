"""The policies that `make gpu` measures, from a small network on few numbers to a large one on images and text."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np


class Input(NamedTuple):
    """An observation of a policy."""

    name: str
    dtype: Literal["float32", "uint8", "int64"]
    shape: list[int]


class Made(NamedTuple):
    """A policy of this host, ready to run."""

    module: Any
    inputs: list[Input]
    width: int
    """How many floats it returns for a row."""
    program: bytes
    """The module as a file of `torch.export` with any number of rows."""


def policies() -> dict[str, Callable[[], Made]]:
    """What makes each of them, by name."""
    return {"mlp": mlp, "nature-cnn": nature_cnn, "vit-s": vit_s}


def mlp() -> Made:
    """8→64→64→4, with tanh."""
    from torch import nn

    net = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))
    return _made(net, [Input("observation", "float32", [8])], 4)


def nature_cnn() -> Made:
    """The network of Mnih et al. 2015, on four frames of 84×84 bytes."""
    from torch import Tensor, nn

    class NatureCnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                *(nn.Conv2d(4, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()),
                *(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 18)),
            )

        def forward(self, observation: Tensor) -> Any:
            return self.net(observation.float() / 255)

    return _made(NatureCnn(), [Input("observation", "uint8", [4, 84, 84])], 18)


def vit_s() -> Made:
    """A transformer of the size of ViT-S (12 layers, width 384, 6 heads) on an image and 32 tokens of text."""
    import torch
    from torch import Tensor, nn

    class ImageAndText(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 384, 16, stride=16)
            self.words = nn.Embedding(32_000, 384)
            self.positions = nn.Parameter(torch.zeros(1, 14 * 14 + 32, 384))
            layer = nn.TransformerEncoderLayer(384, 6, 1536, activation="gelu", batch_first=True, norm_first=True)
            self.layers = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
            self.act = nn.Linear(384, 7)

        def forward(self, image: Tensor, text: Tensor) -> Any:
            seen = self.patches(image.float() / 255).flatten(2).transpose(1, 2)
            both = torch.cat([seen, self.words(text)], dim=1) + self.positions
            return self.act(self.layers(both).mean(dim=1))

    return _made(ImageAndText(), [Input("image", "uint8", [3, 224, 224]), Input("text", "int64", [32])], 7)


def _made(module: Any, inputs: list[Input], width: int) -> Made:
    """Exports the module, which for a large one takes longer than to measure it."""
    import torch

    example = tuple(torch.from_numpy(np.zeros((2, *each.shape), each.dtype)) for each in inputs)
    rows = torch.export.Dim("rows", min=1, max=4096)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(
            torch.export.export(module.eval(), example, dynamic_shapes=tuple({0: rows} for _ in inputs)), file
        )
    return Made(module, inputs, width, file.getvalue())
