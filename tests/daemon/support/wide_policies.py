"""Policies whose observations, or outputs, are large enough for slots, and whose every action can be checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.harness import publish

WIDTH = 8_192
NARROW = 8

_CARD = """
schema: 1
name: {name}
version: 1.0.0
description: Doubles what it sees.
licence: Apache-2.0
observation:
- {{name: observation, dtype: float32, shape: [{width}]}}
outputs:
- {{name: action, dtype: float32, shape: [{outputs}]}}
"""


def publish_wide(store: Path, version: str = "1.0.0") -> None:
    """Publishes `wide`: 32 KB of float32 [WIDTH] come in, twice as much of each goes out."""
    two = numpy_helper.from_array(np.array(2.0, np.float32), "two")
    model = _model([helper.make_node("Mul", ["observation", "two"], ["action"])], [two], WIDTH)
    card = _CARD.format(name="wide", width=WIDTH, outputs=WIDTH).replace("1.0.0", version)
    publish(store, "wide", version, model, card)


def publish_tall(store: Path) -> None:
    """Publishes `tall`: float32 [NARROW] comes in, and goes out WIDTH / NARROW times, one behind the other."""
    repeats = numpy_helper.from_array(np.array([1, WIDTH // NARROW], np.int64), "repeats")
    model = _model([helper.make_node("Tile", ["observation", "repeats"], ["action"])], [repeats], NARROW)
    publish(store, "tall", "1.0.0", model, _CARD.format(name="tall", width=NARROW, outputs=WIDTH))


def _model(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], width: int) -> bytes:
    inputs = [helper.make_tensor_value_info("observation", TensorProto.FLOAT, ["rows", width])]
    outputs = [helper.make_tensor_value_info("action", TensorProto.FLOAT, ["rows", WIDTH])]
    graph = helper.make_graph(nodes, "wide", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
