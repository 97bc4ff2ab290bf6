"""A policy whose observation says how long its engine runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.daemon.support.policies.graphs import model_bytes
from tests.harness import publish

ENDLESS = np.array([1e15], np.float32)
"""An observation on which the engine computes for months."""

_CARD = """
schema: 1
name: looping
version: 1.0.0
description: Repeats its observation, after as many rounds of a loop as its largest element says.
licence: Apache-2.0
observation:
- {name: observation, dtype: float32, shape: [1]}
outputs:
- {name: action, dtype: float32, shape: [1]}
"""


def publish_looping(store: Path) -> None:
    """Publishes `looping`: its action, float32 [1], is its observation, float32 [1]."""
    scalar = [helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in ("before", "after")]
    going = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("goes", "goes_on")]
    round_ = helper.make_tensor_value_info("round", TensorProto.INT64, [])
    body = helper.make_graph(
        [helper.make_node("Identity", ["goes"], ["goes_on"]), helper.make_node("Neg", ["before"], ["after"])],
        "body",
        [round_, going[0], scalar[0]],
        [going[1], scalar[1]],
    )
    nodes = [
        helper.make_node("ReduceMax", ["observation"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["rounds"], to=TensorProto.INT64),
        helper.make_node("Loop", ["rounds", "true", "zero"], ["looped"], body=body),
        helper.make_node("Add", ["observation", "looped"], ["action"]),
    ]
    constants = [numpy_helper.from_array(np.array(True), "true"), numpy_helper.from_array(np.float32(0), "zero")]  # type: ignore[arg-type]
    model = model_bytes("looping", nodes, constants, {"observation": 1}, {"action": 1})
    publish(store, "looping", "1.0.0", model, _CARD)
