"""ONNX models for the policies that tests publish, and `table`, a policy that looks its action up by an integer observation.

An index out of range fails the whole batch of `table`, if nothing refuses it before.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pillion_artifacts.card.model_card import parse_card
from tests.harness import publish

ENTRIES = 16
"""The action of observation n is n / 2."""

_LOOP_INPUTS: tuple[tuple[str, int, list[str]], ...] = (
    ("turn", TensorProto.INT64, []),
    ("going", TensorProto.BOOL, []),
    ("index", TensorProto.INT64, ["rows"]),
)

_CARD = """
schema: 2
name: table
version: {version}
description: Looks its action up.
licence: Apache-2.0
observation:
- {{name: observation, dtype: int64, shape: [], space: Discrete, low: [0], high: [{last}]}}
outputs:
- {{name: action, dtype: float32, shape: []}}
"""


def model_bytes(
    name: str,
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    inputs: dict[str, int],
    outputs: dict[str, int],
) -> bytes:
    """Returns a checked, serialized model; every input and output is float32 [rows, the given width]."""
    graph = helper.make_graph(nodes, name, _tensors(inputs), _tensors(outputs), constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def _tensors(widths: dict[str, int]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width]) for name, width in widths.items()]


def table_card(version: str = "1.0.0") -> str:
    """Returns the model card of a version."""
    return _CARD.format(version=version, last=ENTRIES - 1)


SPEC = parse_card(table_card().encode()).spec()


def table_model() -> bytes:
    """Returns the model."""
    return _model([helper.make_node("Gather", ["table", "observation"], ["action"])])


def repeated_model() -> bytes:
    """Returns a model that gives the same answers, out of a loop that runs once."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("Gather", ["table", "index"], ["found"]),
        ],
        "body",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in _LOOP_INPUTS],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("index_after", TensorProto.INT64, ["rows"]),
            helper.make_tensor_value_info("found", TensorProto.FLOAT, ["rows"]),
        ],
    )
    body.node.append(helper.make_node("Identity", ["index"], ["index_after"]))
    return _model(
        [
            helper.make_node("Loop", ["once", "", "observation"], ["last", "each"], body=body),
            helper.make_node("Squeeze", ["each", "first_axis"], ["action"]),
        ]
    )


def _model(nodes: list[onnx.NodeProto]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "table",
        [helper.make_tensor_value_info("observation", TensorProto.INT64, ["rows"])],
        [helper.make_tensor_value_info("action", TensorProto.FLOAT, ["rows"])],
        [
            numpy_helper.from_array(np.arange(ENTRIES, dtype=np.float32) / 2, "table"),
            numpy_helper.from_array(np.array(1, np.int64), "once"),
            numpy_helper.from_array(np.array([0], np.int64), "first_axis"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def publish_table(store: Path, version: str = "1.0.0", model: bytes | None = None) -> None:
    """Publishes a version of `table`."""
    publish(store, "table", version, model or table_model(), table_card(version))


WIDE = 4_096
"""Observations and actions of `wide-table`: 32 KB of int64 travel in a slot."""

_WIDE_CARD = """
schema: 2
name: wide-table
version: 1.0.0
description: Looks many actions up.
licence: Apache-2.0
observation:
- {{name: observation, dtype: int64, shape: [{width}], space: Box, low: [0], high: [{last}]}}
outputs:
- {{name: action, dtype: float32, shape: [{width}]}}
"""


def publish_wide_table(store: Path) -> None:
    """Publishes `wide-table`: as `table`, for int64 [WIDE] at once."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "observation"], ["action"])],
        "wide_table",
        [helper.make_tensor_value_info("observation", TensorProto.INT64, ["rows", WIDE])],
        [helper.make_tensor_value_info("action", TensorProto.FLOAT, ["rows", WIDE])],
        [numpy_helper.from_array(np.arange(ENTRIES, dtype=np.float32) / 2, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    card = _WIDE_CARD.format(width=WIDE, last=ENTRIES - 1)
    publish(store, "wide-table", "1.0.0", bytes(model.SerializeToString()), card)
