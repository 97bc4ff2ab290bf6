"""Policies for workers: each is a model with its spec, and what else an engine must know."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pillion_artifacts import Store
from pillion_artifacts.card.model_card import StateCard
from pillion_protocol import Spec, TensorSpec
from tests.harness import STORE

TABLE = [10.0, 11.0, 12.0, 13.0]
"""What `looking_up` knows: its action is the entry that the observation names."""


class Policy(NamedTuple):
    """A policy for an engine of either kind."""

    model: bytes
    spec: Spec
    parameters: list[str]
    states: list[StateCard]


def shipped(name: str) -> Policy:
    """A policy that ships, with the parameters of its distribution."""
    artifact = Store(STORE).load(name)
    return Policy(artifact.model, artifact.card.spec(), artifact.card.distribution.parameters(), artifact.card.state)


def summing() -> Policy:
    """Its action is the sum of the observations so far, which is its state."""
    nodes = [
        helper.make_node("Add", ["observation", "sum"], ["sum_next"]),
        helper.make_node("Identity", ["sum_next"], ["action"]),
    ]
    floats = TensorProto.FLOAT
    model = _model(nodes, [], {"observation": (floats, 1), "sum": (floats, 1)}, {"action": floats, "sum_next": floats})
    spec = Spec([TensorSpec("observation", "float32", [1])], [TensorSpec("action", "float32", [1])])
    return Policy(model, spec, [], [StateCard("sum", "sum_next", "float32", [1])])


def looking_up() -> Policy:
    """Its action is an entry of `TABLE`; ONNX Runtime fails the whole batch for an index beyond it."""
    nodes = [helper.make_node("Gather", ["table", "index"], ["action"])]
    constants = [numpy_helper.from_array(np.array(TABLE, np.float32), "table")]
    model = _model(nodes, constants, {"index": (TensorProto.INT64, 1)}, {"action": TensorProto.FLOAT})
    spec = Spec([TensorSpec("index", "int64", [1])], [TensorSpec("action", "float32", [1])])
    return Policy(model, spec, [], [])


def looping() -> Policy:
    """Counts to its observation, of the first row, one by one; a large number never ends."""
    floats, ints, bools = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going_on"], ["still_going_on"]),
            helper.make_node("Add", ["counted", "one"], ["counted_more"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("iteration", ints, []),
            helper.make_tensor_value_info("going_on", bools, []),
            helper.make_tensor_value_info("counted", floats, None),
        ],
        [
            helper.make_tensor_value_info("still_going_on", bools, []),
            helper.make_tensor_value_info("counted_more", floats, None),
        ],
    )
    nodes = [
        helper.make_node("Cast", ["observation"], ["zeros_as"], to=floats),
        helper.make_node("Mul", ["zeros_as", "zero"], ["start"]),
        helper.make_node("Gather", ["observation", "first"], ["first_row"], axis=0),
        helper.make_node("ReduceMax", ["first_row"], ["count"], keepdims=0),
        helper.make_node("Loop", ["count", "yes", "start"], ["action"], body=body),
    ]
    constants = [
        numpy_helper.from_array(np.array(1.0, np.float32), "one"),
        numpy_helper.from_array(np.array(0.0, np.float32), "zero"),
        numpy_helper.from_array(np.array([0], np.int64), "first"),
        numpy_helper.from_array(np.array(True), "yes"),
    ]
    model = _model(nodes, constants, {"observation": (ints, 1)}, {"action": floats})
    spec = Spec([TensorSpec("observation", "int64", [1])], [TensorSpec("action", "float32", [1])])
    return Policy(model, spec, [], [])


def allocating() -> Policy:
    """Its action is its observation; in between it fills as many floats as the first row says."""
    floats, ints = TensorProto.FLOAT, TensorProto.INT64
    nodes = [
        helper.make_node("Gather", ["observation", "first"], ["count"], axis=0),
        helper.make_node("ConstantOfShape", ["count"], ["zeros"]),
        helper.make_node("ReduceMax", ["zeros"], ["zero"], keepdims=0),
        helper.make_node("Cast", ["observation"], ["as_float"], to=floats),
        helper.make_node("Add", ["as_float", "zero"], ["action"]),
    ]
    constants = [numpy_helper.from_array(np.array(0, np.int64), "first")]
    model = _model(nodes, constants, {"observation": (ints, 1)}, {"action": floats})
    spec = Spec([TensorSpec("observation", "int64", [1])], [TensorSpec("action", "float32", [1])])
    return Policy(model, spec, [], [])


def _model(
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    inputs: dict[str, tuple[int, int]],
    outputs: dict[str, int],
) -> bytes:
    """A model whose inputs and outputs have rows of one element or as many as given."""
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info(name, kind, ["rows", width]) for name, (kind, width) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, ["rows", 1]) for name, kind in outputs.items()],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
