"""A recurrent policy whose actions show its state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import helper, numpy_helper

from tests.daemon.support.policies.graphs import model_bytes
from tests.harness import publish

_CARD = """
schema: 2
name: summing
version: {version}
description: Adds up the observations of its episode, and a step for each act.
licence: Apache-2.0
observation:
- {{name: observation, dtype: float32, shape: [1]}}
outputs:
- {{name: action, dtype: float32, shape: [1]}}
state:
- {{name: sum, output: sum_next, dtype: float32, shape: [1]}}
"""


def publish_summing(store: Path, version: str, step: float) -> None:
    """Publishes `summing`: each act adds the observation and `step` to the state; the action is the new state."""
    nodes = [
        helper.make_node("Add", ["observation", "step"], ["more"]),
        helper.make_node("Add", ["sum", "more"], ["sum_next"]),
        helper.make_node("Identity", ["sum_next"], ["action"]),
    ]
    constants = [numpy_helper.from_array(np.array(step, np.float32), "step")]
    model = model_bytes("summing", nodes, constants, {"observation": 1, "sum": 1}, {"action": 1, "sum_next": 1})
    publish(store, "summing", version, model, _CARD.format(version=version))
