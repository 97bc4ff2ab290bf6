"""A recurrent policy whose actions show its state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

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
    _publish(store, version, step, helper.make_node("Add", ["sum", "more"], ["sum_next"]))


def publish_looped_summing(store: Path, version: str, step: float) -> None:
    """Publishes a version of `summing` that adds in a loop: its graph is not bounded, so it runs in a worker."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going_on"], ["still_going_on"]),
            helper.make_node("Add", ["carried", "sum"], ["carried_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still_going_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_on", TensorProto.FLOAT, None),
        ],
    )
    _publish(store, version, step, helper.make_node("Loop", ["once", "", "more"], ["sum_next"], body=body))


def _publish(store: Path, version: str, step: float, add: onnx.NodeProto) -> None:
    nodes = [
        helper.make_node("Add", ["observation", "step"], ["more"]),
        add,
        helper.make_node("Identity", ["sum_next"], ["action"]),
    ]
    constants = [numpy_helper.from_array(np.array(step, np.float32), "step")]
    if "once" in add.input:
        constants.append(numpy_helper.from_array(np.array(1, np.int64), "once"))
    model = model_bytes("summing", nodes, constants, {"observation": 1, "sum": 1}, {"action": 1, "sum_next": 1})
    publish(store, "summing", version, model, _CARD.format(version=version))
