"""Two small policies with several inputs, of CLIP's and of FLAVA's kind, with random weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pillion_artifacts import ModelCard, parse_card


class TinyClip(nn.Module):
    """Of CLIP's kind: an image and the tokens of a sentence, each in an encoder of its own, compared by their cosine."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        self.words = nn.Embedding(50, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.see = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.read = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.act = nn.Linear(33, 3)

    def forward(self, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        pixels = image.permute(0, 3, 1, 2).float() / 255
        seen = self.see(self.patches(pixels).flatten(2).transpose(1, 2)).mean(1)
        hidden = tokens == 0
        read = self.read(self.words(tokens), src_key_padding_mask=hidden)
        read = read.masked_fill(hidden[..., None], 0.0).sum(1) / (~hidden).sum(1, keepdim=True).clamp(min=1)
        likeness = nn.functional.cosine_similarity(seen, read)[:, None]
        return torch.tanh(self.act(torch.cat([seen, read, likeness], 1))), likeness


class TinyFlava(nn.Module):
    """Of FLAVA's kind: an image and text (UTF-8, then zeros) in one encoder, with a memory of what was."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(4 * 4 * 3, 16)
        self.letters = nn.Embedding(256, 16)
        self.kind = nn.Embedding(2, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.join = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.plan = nn.Linear(32, 4 * 2)

    def forward(self, image: Tensor, text: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        blocks = (image.float() / 255).unfold(1, 4, 4).unfold(2, 4, 4).flatten(3).flatten(1, 2)
        seen = self.patches(blocks) + self.kind.weight[0]
        read = self.letters(text.long()) + self.kind.weight[1]
        hidden = torch.cat([torch.zeros_like(seen[..., 0], dtype=torch.bool), text == 0], 1)
        joined = self.join(torch.cat([seen, read], 1), src_key_padding_mask=hidden)[:, 0]
        after = 0.5 * memory + 0.5 * joined
        return torch.tanh(self.plan(torch.cat([joined, after], 1))).reshape(-1, 4, 2), after


def clip_card() -> ModelCard:
    return parse_card(b"""
schema: 3
name: clip
version: 1.0.0
description: Looks, and follows a sentence.
licence: MIT
engine: {kind: torch}
observation:
- {name: image, dtype: uint8, shape: [16, 16, 3], low: [0], high: [255]}
- {name: tokens, dtype: int64, shape: [7], low: [0], high: [49]}
outputs:
- {name: action, dtype: float32, shape: [3], low: [-1], high: [1]}
- {name: likeness, dtype: float32, shape: [1]}
tolerance: {absolute: 1.0e-4, relative: 1.0e-4}
""")


def flava_card() -> ModelCard:
    return parse_card(b"""
schema: 3
name: flava
version: 1.0.0
description: Looks, reads, and plans four actions.
licence: MIT
engine: {kind: torch}
action_horizon: 4
observation:
- {name: image, dtype: uint8, shape: [8, 8, 3], low: [0], high: [255]}
- {name: text, dtype: uint8, shape: [12], space: Text}
outputs: [{name: action, dtype: float32, shape: [4, 2], low: [-1], high: [1]}]
state: [{name: memory, output: memory_next, dtype: float32, shape: [16]}]
tolerance: {absolute: 1.0e-4, relative: 1.0e-4}
""")


CLIP_EXAMPLE = (torch.zeros(2, 16, 16, 3, dtype=torch.uint8), torch.ones(2, 7, dtype=torch.int64))
FLAVA_EXAMPLE = (
    torch.zeros(2, 8, 8, 3, dtype=torch.uint8),
    torch.ones(2, 12, dtype=torch.uint8),
    torch.zeros(2, 16),
)
