"""Policies whose answer to an observation depends on the batch that it is in."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pillion_artifacts import Store
from pillion_artifacts.card.golden_pairs import Golden, encode_golden
from tests.harness import publish

_CARD = """
schema: 1
name: {name}
version: {version}
description: Answers otherwise in company.
licence: Apache-2.0
observation:
- {{name: observation, dtype: float32, shape: [{width}]}}
outputs:
- {{name: action, dtype: float32, shape: [{width}]}}
"""

ROUNDED_WIDTH = 13
"""No vector register holds rows of it evenly."""

LARGE_WIDTH = 8_191


def publish_rounded(store: Path, name: str = "rounded", width: int = ROUNDED_WIDTH, version: str = "1.0.0") -> None:
    """Publishes a policy that takes exponentials of float32 [width]: the first and last of an array round otherwise."""
    publish(store, name, version, model_of("Elu", width), _card(name, width, version))


def publish_plain(store: Path, version: str, golden: Golden | None = None, name: str = "rounded") -> None:
    """Publishes a version whose answers are sums and comparisons, the same in any batch."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.onnx").write_bytes(model_of("Relu", ROUNDED_WIDTH))
        (Path(folder) / "model_card.yaml").write_text(_card(name, ROUNDED_WIDTH, version))
        if golden is not None:
            (Path(folder) / "golden.safetensors").write_bytes(encode_golden(golden))
        Store(store).publish(name, version, Path(folder), created_by="a test")


def publish_sociable(store: Path) -> None:
    """Publishes `sociable`: from each observation it takes the mean of the batch."""
    publish(store, "sociable", "1.0.0", sociable_model(), _card("sociable", ROUNDED_WIDTH, "1.0.0"))


def _card(name: str, width: int, version: str) -> str:
    return _CARD.format(name=name, width=width, version=version)


def model_of(operator: str, width: int) -> bytes:
    """A graph that applies one operator, with a factor before it that keeps compilers from a short cut."""
    factor = numpy_helper.from_array(np.array(0.7, np.float32), "factor")
    nodes = [
        helper.make_node("Mul", ["observation", "factor"], ["scaled"]),
        helper.make_node(operator, ["scaled"], ["action"]),
    ]
    return _model(nodes, [factor], width)


def sociable_model() -> bytes:
    """A graph whose rows are not independent."""
    nodes = [
        helper.make_node("ReduceMean", ["observation"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["observation", "mean"], ["action"]),
    ]
    return _model(nodes, [], ROUNDED_WIDTH)


def _model(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], width: int) -> bytes:
    inputs = [helper.make_tensor_value_info("observation", TensorProto.FLOAT, ["rows", width])]
    outputs = [helper.make_tensor_value_info("action", TensorProto.FLOAT, ["rows", width])]
    graph = helper.make_graph(nodes, "touchy", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
