"""Policies that one observation can slow down, fail, crash or blow up, and harmless ones with the same spec.

Every observation is int64 [2]: a value and a `Poison`, made by `row`. The action, int64, is the value, so each answer can be
checked. The cards have no bounds: what an observation does to the engine is not caught before it runs.
"""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.harness import publish


class Poison(IntEnum):
    """What an observation does to `hostile`. The numbers are such that nobody draws them by chance."""

    NONE = 0
    BEYOND = 71_000_001
    """Looks up an entry that its table does not have: ONNX Runtime fails the batch."""
    BY_ZERO = 71_000_002
    """Divides by zero: ONNX Runtime fails the batch."""
    CRASH = 71_000_003
    """Divides the smallest int64 by -1, which ends the process with SIGFPE."""
    FOR_EVER = 71_000_004
    """Loops for ever."""
    LARGE = 71_000_005
    """Allocates `LARGE_BYTES`."""
    HUGE = 71_000_006
    """Allocates more than any machine has."""


LARGE_BYTES = 2 * 1024**3

_CARD = """
schema: 2
name: {name}
version: {version}
description: Returns the first number of its observation.
licence: Apache-2.0
observation:
- {{name: observation, dtype: int64, shape: [2]}}
outputs:
- {{name: action, dtype: int64, shape: []}}
"""

_LSTM_CARD = """
schema: 2
name: lstm
version: {version}
description: An LSTM cell; its action is its hidden state.
licence: Apache-2.0
observation:
- {{name: observation, dtype: float32, shape: [{inputs}]}}
outputs:
- {{name: action, dtype: float32, shape: [{hidden}]}}
state:
- {{name: hidden, output: hidden_next, dtype: float32, shape: [{hidden}]}}
- {{name: cell, output: cell_next, dtype: float32, shape: [{hidden}]}}
"""
LSTM_INPUTS = 3
LSTM_HIDDEN = 4


def row(value: int, poison: Poison = Poison.NONE) -> NDArray[np.int64]:
    """Returns an observation, int64 [2]."""
    return np.array([value, poison], np.int64)


def publish_hostile(store: Path, version: str = "1.0.0") -> None:
    """Publishes `hostile`: a `Poison` can be its end."""
    publish(store, "hostile", version, _hostile_model(), _card("hostile", version))


def publish_harmless(store: Path, name: str = "harmless", version: str = "1.0.0") -> None:
    """Publishes a small and bounded policy of the same spec, that runs inline."""
    nodes = [_column("value", 0), helper.make_node("Add", ["value", "zero"], ["action"])]
    publish(store, name, version, _model(nodes, [_int("zero", 0), *_columns()]), _card(name, version))


def publish_slow(store: Path, turns: int, name: str = "slow", version: str = "1.0.0") -> None:
    """Publishes a policy that loops `turns` times for each batch, about a microsecond each."""
    nodes = [
        _column("value", 0),
        helper.make_node("Loop", ["turns", "yes", "value"], ["action"], body=_loop_body()),
    ]
    constants = [_int("turns", turns), *_loop_constants(), *_columns()]
    publish(store, name, version, _model(nodes, constants), _card(name, version))


def publish_lstm(store: Path, version: str = "1.0.0", seed: int = 1) -> None:
    """Publishes `lstm`: each act advances an LSTM cell with random weights by one step."""
    draw = np.random.default_rng(seed)
    shapes = {"w": (1, 4 * LSTM_HIDDEN, LSTM_INPUTS), "r": (1, 4 * LSTM_HIDDEN, LSTM_HIDDEN), "b": (1, 8 * LSTM_HIDDEN)}
    constants = [
        numpy_helper.from_array(draw.normal(size=shape).astype(np.float32), name) for name, shape in shapes.items()
    ]
    constants.append(numpy_helper.from_array(np.array([0], np.int64), "first"))
    nodes = [
        helper.make_node("Unsqueeze", ["observation", "first"], ["sequence"]),
        helper.make_node("Unsqueeze", ["hidden", "first"], ["hidden_before"]),
        helper.make_node("Unsqueeze", ["cell", "first"], ["cell_before"]),
        helper.make_node(
            "LSTM",
            ["sequence", "w", "r", "b", "", "hidden_before", "cell_before"],
            ["", "hidden_after", "cell_after"],
            hidden_size=LSTM_HIDDEN,
        ),
        helper.make_node("Squeeze", ["hidden_after", "first"], ["hidden_next"]),
        helper.make_node("Squeeze", ["cell_after", "first"], ["cell_next"]),
        helper.make_node("Identity", ["hidden_next"], ["action"]),
    ]
    floats = TensorProto.FLOAT
    inputs = {"observation": LSTM_INPUTS, "hidden": LSTM_HIDDEN, "cell": LSTM_HIDDEN}
    outputs = ("action", "hidden_next", "cell_next")
    graph = helper.make_graph(
        nodes,
        "lstm",
        [helper.make_tensor_value_info(name, floats, ["rows", width]) for name, width in inputs.items()],
        [helper.make_tensor_value_info(name, floats, ["rows", LSTM_HIDDEN]) for name in outputs],
        constants,
    )
    card = _LSTM_CARD.format(version=version, inputs=LSTM_INPUTS, hidden=LSTM_HIDDEN)
    publish(store, "lstm", version, _serialized(graph), card)


def _hostile_model() -> bytes:
    nodes = [
        _column("value", 0),
        _column("poison", 1),
        *(node for poison in list(Poison)[1:] for node in _is(poison)),
        # 0, or a failure: an entry of a table of zeros.
        helper.make_node("Mul", [_name(Poison.BEYOND), "far"], ["index"]),
        helper.make_node("Gather", ["table", "index"], ["entry"]),
        # 0, or a failure, or the end of the process: a quotient less itself.
        helper.make_node("Sub", ["one", _name(Poison.BY_ZERO)], ["one_or_zero"]),
        helper.make_node("Mul", [_name(Poison.CRASH), "two"], ["two_if_crash"]),
        helper.make_node("Sub", ["one_or_zero", "two_if_crash"], ["by"]),
        helper.make_node("Div", ["smallest", "by"], ["quotient"]),
        helper.make_node("Sub", ["quotient", "quotient"], ["nothing"]),
        # The value, after a loop of no turns or of very many.
        helper.make_node("Mul", [_name(Poison.FOR_EVER), "for_ever"], ["turns"]),
        helper.make_node("ReduceMax", ["turns"], ["turns_max"], keepdims=0),
        helper.make_node("Loop", ["turns_max", "yes", "value"], ["looped"], body=_loop_body()),
        # The sum of no zeros or of very many.
        helper.make_node("Mul", [_name(Poison.LARGE), "large"], ["large_elements"]),
        helper.make_node("Mul", [_name(Poison.HUGE), "huge"], ["huge_elements"]),
        helper.make_node("Add", ["large_elements", "huge_elements"], ["elements"]),
        helper.make_node("ReduceMax", ["elements"], ["elements_max"], keepdims=1),
        helper.make_node(
            "ConstantOfShape", ["elements_max"], ["zeros"], value=helper.make_tensor("v", TensorProto.INT64, [1], [0])
        ),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        helper.make_node("Add", ["looped", "entry"], ["looped_and_entry"]),
        helper.make_node("Add", ["nothing", "sum"], ["nothing_and_sum"]),
        helper.make_node("Add", ["looped_and_entry", "nothing_and_sum"], ["action"]),
    ]
    numbers = {
        "far": 99,
        "one": 1,
        "two": 2,
        "smallest": -(2**63),
        "for_ever": 2**62,
        "large": LARGE_BYTES // 8,
        "huge": 2**45,
        **{f"code_{poison.name}": poison for poison in Poison},
    }
    table = numpy_helper.from_array(np.zeros(16, np.int64), "table")
    return _model(
        nodes, [table, *(_int(name, value) for name, value in numbers.items()), *_loop_constants(), *_columns()]
    )


def _is(poison: Poison) -> list[onnx.NodeProto]:
    """Makes 1 of the rows with that poison, and 0 of the others."""
    name = _name(poison)
    return [
        helper.make_node("Equal", ["poison", f"code_{poison.name}"], [f"{name}_bool"]),
        helper.make_node("Cast", [f"{name}_bool"], [name], to=TensorProto.INT64),
    ]


def _name(poison: Poison) -> str:
    return f"is_{poison.name}"


def _loop_body() -> onnx.GraphProto:
    """Adds nothing to what it carries."""
    return helper.make_graph(
        [
            helper.make_node("Identity", ["going_on"], ["still_going_on"]),
            helper.make_node("Add", ["carried", "nil"], ["carried_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.INT64, None),
        ],
        [
            helper.make_tensor_value_info("still_going_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried_on", TensorProto.INT64, None),
        ],
    )


def _loop_constants() -> list[onnx.TensorProto]:
    return [_int("nil", 0), numpy_helper.from_array(np.array(True), "yes")]


def _column(name: str, number: int) -> onnx.NodeProto:
    return helper.make_node("Gather", ["observation", f"column_{number}"], [name], axis=1)


def _columns() -> list[onnx.TensorProto]:
    return [_int(f"column_{number}", number) for number in range(2)]


def _int(name: str, value: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, np.int64), name)


def _card(name: str, version: str) -> str:
    return _CARD.format(name=name, version=version)


def _model(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]) -> bytes:
    """A model of the spec that they all have; it keeps only the constants that a node uses."""
    used = {name for node in nodes for name in node.input}
    used |= {name for node in nodes for each in node.attribute for inner in each.g.node for name in inner.input}
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info("observation", TensorProto.INT64, ["rows", 2])],
        [helper.make_tensor_value_info("action", TensorProto.INT64, ["rows"])],
        [each for each in constants if each.name in used],
    )
    return _serialized(graph)


def _serialized(graph: onnx.GraphProto) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
