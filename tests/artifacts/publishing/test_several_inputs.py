"""Policies of image and tokens, and of image and text, are published as torch programs, batched and served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import pillion
import pillion_artifacts
from pillion_artifacts import Store
from tests.artifacts.support.several_inputs import (
    CLIP_EXAMPLE,
    FLAVA_EXAMPLE,
    TinyClip,
    TinyFlava,
    clip_card,
    flava_card,
)
from tests.conftest import StartDaemon

RANDOM = np.random.default_rng(11)
PROMPTS = ["", "go", "öffne", "push the cup"]
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(2)


def images(rows: int, size: int) -> NDArray[np.uint8]:
    light = RANDOM.uniform(0, 1, (rows, 1, 1, 1))
    return (RANDOM.integers(0, 256, (rows, size, size, 3)) * light).astype(np.uint8)


def test_a_policy_of_image_and_tokens_is_served_in_batches_as_it_acts(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    policy = TinyClip()
    pillion_artifacts.export(policy, CLIP_EXAMPLE, clip_card(), tmp_path / "folder")
    Store(tmp_path / "store").publish("clip", "1.0.0", tmp_path / "folder")
    image, tokens = images(9, 16), RANDOM.integers(0, 50, (9, 7))
    with torch.no_grad():
        expected, likeness = policy.eval()(torch.from_numpy(image), torch.from_numpy(tokens))
    assert np.ptp(expected.numpy(), axis=0).min() > 0
    daemon = start_daemon(policy="clip", store=tmp_path / "store")
    with pillion.connect(daemon.address) as session:
        with session.begin_many(9) as group:
            np.testing.assert_allclose(group.act({"image": image, "tokens": tokens}), expected.numpy(), **CLOSE)
        # several episodes of one row each share a batch with others
        episodes = [session.begin() for _ in range(3)]
        for row, episode in enumerate(episodes):
            action = episode.act({"image": image[row], "tokens": tokens[row]})
            np.testing.assert_allclose(action, expected[row].numpy(), **CLOSE)
            episode.end()
    assert likeness.shape == (9, 1)


def test_a_policy_of_image_and_text_with_a_memory_is_served_in_chunks_of_actions(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    policy = TinyFlava()
    pillion_artifacts.export(policy, FLAVA_EXAMPLE, flava_card(), tmp_path / "folder")
    Store(tmp_path / "store").publish("flava", "1.0.0", tmp_path / "folder")
    rows = len(PROMPTS)
    text = np.zeros((rows, 12), np.uint8)
    for row, prompt in enumerate(PROMPTS):
        encoded = prompt.encode()
        text[row, : len(encoded)] = list(encoded)
    daemon = start_daemon(policy="flava", store=tmp_path / "store")
    memory = torch.zeros(rows, 16)
    with pillion.connect(daemon.address) as session, session.begin_many(rows) as group:
        for step in range(3):
            image = images(rows, 8)
            with torch.no_grad():
                expected, memory = policy.eval()(torch.from_numpy(image), torch.from_numpy(text), memory)
            # as `str`, and as the bytes that it stands for
            given: Any = PROMPTS if step < 2 else text
            actions = group.act({"image": image, "text": given})
            assert actions.shape == (rows, 4, 2)
            np.testing.assert_allclose(actions, expected.numpy(), **CLOSE)
