"""Policies whose answer to an observation depends on its batch, and one whose answer does not."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from onnx import helper, numpy_helper

from pillion_artifacts import Store
from pillion_artifacts.card.golden_pairs import Golden, encode_golden
from tests.daemon.support.policies.graphs import model_bytes
from tests.harness import publish

_CARD = """
schema: 1
name: {name}
version: {version}
description: Applies one operator to its observation.
licence: Apache-2.0
observation:
- {{name: observation, dtype: float32, shape: [{width}]}}
outputs:
- {{name: action, dtype: float32, shape: [{width}]}}
"""

ROUNDED_WIDTH = 13
"""No vector register holds a whole number of such rows."""

LARGE_WIDTH = 8_191


def publish_rounded(store: Path, name: str = "rounded", width: int = ROUNDED_WIDTH, version: str = "1.0.0") -> None:
    """Publishes a policy that takes exponentials of float32 [width].

    At the two ends of an array they are rounded differently, so that the position in the batch matters.
    """
    publish(store, name, version, one_operator_model("Elu", width), _card(name, width, version))


def publish_plain(store: Path, version: str, golden: Golden | None = None, name: str = "rounded") -> None:
    """Publishes a version that only multiplies and compares: the same answer in any batch."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.onnx").write_bytes(one_operator_model("Relu", ROUNDED_WIDTH))
        (Path(folder) / "model_card.yaml").write_text(_card(name, ROUNDED_WIDTH, version))
        if golden is not None:
            (Path(folder) / "golden.safetensors").write_bytes(encode_golden(golden))
        Store(store).publish(name, version, Path(folder), created_by="a test")


def publish_batch_mean(store: Path) -> None:
    """Publishes `batch-mean`, whose rows depend on each other: it subtracts the mean of the batch."""
    nodes = [
        helper.make_node("ReduceMean", ["observation"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["observation", "mean"], ["action"]),
    ]
    widths = {"observation": ROUNDED_WIDTH}, {"action": ROUNDED_WIDTH}
    model = model_bytes("batch_mean", nodes, [], *widths)
    publish(store, "batch-mean", "1.0.0", model, _card("batch-mean", ROUNDED_WIDTH, "1.0.0"))


def one_operator_model(operator: str, width: int) -> bytes:
    """Returns a model that applies one operator. The factor before it keeps compilers from simplifying the graph."""
    factor = numpy_helper.from_array(np.array(0.7, np.float32), "factor")
    nodes = [
        helper.make_node("Mul", ["observation", "factor"], ["scaled"]),
        helper.make_node(operator, ["scaled"], ["action"]),
    ]
    return model_bytes("one_operator", nodes, [factor], {"observation": width}, {"action": width})


def _card(name: str, width: int, version: str) -> str:
    return _CARD.format(name=name, width=width, version=version)
