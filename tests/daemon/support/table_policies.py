"""A policy that looks its action up by an integer observation: an index out of range fails the whole batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pillion_artifacts.card.model_card import parse_card
from tests.harness import publish

ENTRIES = 16
"""The action of observation n is n / 2."""

CARD = f"""
schema: 2
name: table
version: 1.0.0
description: Looks its action up.
licence: Apache-2.0
observation:
- {{name: observation, dtype: int64, shape: [], space: Discrete, low: [0], high: [{ENTRIES - 1}]}}
outputs:
- {{name: action, dtype: float32, shape: []}}
"""

SPEC = parse_card(CARD.encode()).spec()


def table_model() -> bytes:
    """Returns the model."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "observation"], ["action"])],
        "table",
        [helper.make_tensor_value_info("observation", TensorProto.INT64, ["rows"])],
        [helper.make_tensor_value_info("action", TensorProto.FLOAT, ["rows"])],
        [numpy_helper.from_array(np.arange(ENTRIES, dtype=np.float32) / 2, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def publish_table(store: Path) -> None:
    """Publishes `table`."""
    publish(store, "table", "1.0.0", table_model(), CARD)
