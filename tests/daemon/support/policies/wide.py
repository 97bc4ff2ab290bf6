"""Policies whose observations or outputs are large enough for slots, and whose every action can be checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from tests.daemon.support.policies.graphs import model_bytes
from tests.harness import publish

WIDTH = 8_192
NARROW = 8

_CARD = """
schema: 1
name: {name}
version: {version}
description: Doubles or repeats its observation.
licence: Apache-2.0
observation:
- {{name: observation, dtype: float32, shape: [{width}]}}
outputs:
- {{name: action, dtype: float32, shape: [{outputs}]}}
"""


def publish_wide(store: Path, version: str = "1.0.0") -> None:
    """Publishes `wide`: its action is twice its observation; both are float32 [WIDTH], which is 32 KB."""
    two = numpy_helper.from_array(np.array(2.0, np.float32), "two")
    nodes = [helper.make_node("Mul", ["observation", "two"], ["action"])]
    _publish(store, "wide", version, nodes, two, WIDTH)


def publish_tall(store: Path) -> None:
    """Publishes `tall`: its action, float32 [WIDTH], is its observation, float32 [NARROW], repeated."""
    repeats = numpy_helper.from_array(np.array([1, WIDTH // NARROW], np.int64), "repeats")
    nodes = [helper.make_node("Tile", ["observation", "repeats"], ["action"])]
    _publish(store, "tall", "1.0.0", nodes, repeats, NARROW)


def _publish(store: Path, name: str, version: str, nodes: list[Any], constant: Any, width: int) -> None:
    model = model_bytes(name, nodes, [constant], {"observation": width}, {"action": WIDTH})
    publish(store, name, version, model, _CARD.format(name=name, version=version, width=width, outputs=WIDTH))
