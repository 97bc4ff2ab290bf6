"""A torch policy of images and texts is published with drawn texts as golden pairs, and served as the module acts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import pillion
from pillion_artifacts import ModelCard, Store, TensorCard, export
from pillion_artifacts.card.golden_pairs import decode_golden
from pillion_protocol.texts import fault_of_text
from tests.conftest import StartDaemon

ROOM = 48
PROMPTS = ["pick up the cup", "größer", "箱を開けて", "x" * ROOM]


class Instructed(nn.Module):
    """Means of the embedded bytes of a prompt, beside the features of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, 8)
        self.see = nn.Conv2d(3, 4, 3, stride=4)
        self.act = nn.Linear(4 * 4 * 4 + 8, 2)

    def forward(self, camera: Tensor, prompt: Tensor) -> Tensor:
        is_used = (prompt != 0).float().unsqueeze(-1)
        words = (self.embed(prompt.long()) * is_used).sum(1) / is_used.sum(1).clamp(min=1)
        seen = self.see(camera.float() / 255).flatten(1)
        action: Tensor = self.act(torch.cat([seen, words], 1))
        return action


CARD = ModelCard(
    schema=3,
    name="instructed",
    version="1.0.0",
    description="Looks and reads.",
    licence="MIT",
    observation=[
        TensorCard("camera", "uint8", [3, 16, 16], low=[0.0], high=[255.0]),
        TensorCard("prompt", "uint8", [ROOM], "Text", low=[1.0]),
    ],
    outputs=[TensorCard("action", "float32", [2])],
)


def test_a_policy_of_images_and_texts_is_published_and_served(tmp_path: Path, start_daemon: StartDaemon) -> None:
    torch.manual_seed(1)
    module = Instructed().eval()
    example = (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.ones(2, ROOM, dtype=torch.uint8))
    export(module, example, CARD, tmp_path / "made")
    golden = decode_golden((tmp_path / "made" / "golden.safetensors").read_bytes())
    assert all(fault_of_text(row.tobytes(), 1) is None for row in golden.inputs["prompt"])
    Store(tmp_path / "store").publish("instructed", "1.0.0", tmp_path / "made", created_by="a test")

    images = np.random.default_rng(1).integers(0, 256, (len(PROMPTS), 3, 16, 16), np.uint8)
    encoded = np.stack([np.frombuffer(text.encode().ljust(ROOM, b"\0"), np.uint8) for text in PROMPTS])
    with torch.no_grad():
        expected = module(torch.from_numpy(images), torch.from_numpy(encoded)).numpy()
    daemon = start_daemon(policy="instructed", store=tmp_path / "store")
    with pillion.connect(daemon.address) as session:
        group = session.begin_many(len(PROMPTS))
        np.testing.assert_allclose(group.act({"camera": images, "prompt": PROMPTS}), expected, rtol=1e-4, atol=1e-5)
        with session.begin() as episode:
            action = episode.act({"camera": images[2], "prompt": PROMPTS[2]})
            np.testing.assert_allclose(action, expected[2], rtol=1e-4, atol=1e-5)
