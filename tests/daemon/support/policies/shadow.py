"""Policies whose answers are known: a shipped one with or without a bias, and ones that scale their observation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pillion_artifacts import Store
from pillion_artifacts.card.layers import CARD_NAME
from tests.daemon.support.policies.graphs import model_bytes
from tests.harness import STORE, blob_of, publish

_CARD = """
schema: 2
name: scaling
version: {version}
description: Scales its observation.
licence: Apache-2.0
observation:
- {{name: observation, dtype: float32, shape: [{width}]}}
outputs:
- {{name: action, dtype: float32, shape: [2]}}
distribution: {distribution}
"""

_TIMES_CARD = """
schema: 2
name: {name}
version: {version}
description: Scales its observation.
licence: Apache-2.0
observation:
- {{name: observation, dtype: float32, shape: [{width}]{bounds}}}
outputs:
- {{name: action, dtype: float32, shape: [{width}]}}
"""


def publish_copy(root: Path, policy: str, version: str, biased: float = 0.0) -> None:
    """Publishes a copy of a shipped policy as that version. `biased` is added to the logit of its first action."""
    shipped = Store(STORE)
    model = onnx.load_model_from_string(shipped.read(shipped.resolve(policy)).model)
    if biased:
        logits = next(node for node in model.graph.node if "logits" in node.output)
        logits.output[list(logits.output).index("logits")] = "unbiased_logits"
        width = next(output for output in model.graph.output if output.name == "logits")
        bias = np.zeros(width.type.tensor_type.shape.dim[1].dim_value, np.float32)
        bias[0] = biased
        model.graph.initializer.append(numpy_helper.from_array(bias, "bias_of_logits"))
        at = list(model.graph.node).index(logits) + 1
        model.graph.node.insert(at, helper.make_node("Add", ["unbiased_logits", "bias_of_logits"], ["logits"]))
    card = blob_of(STORE, policy, CARD_NAME).read_text()
    publish(root, policy, version, model.SerializeToString(), card.replace("version: 1.0.0\n", f"version: {version}\n"))


def publish_scaling(root: Path, version: str, scale: float, *, draws: bool = True, width: int = 2) -> None:
    """Publishes `scaling`: its action, float32 [2], is the start of its observation times `scale`.

    With `draws`, the action is drawn from a Gaussian around that.
    """
    constants = [
        numpy_helper.from_array(np.array([scale, scale], np.float32), "scale"),
        numpy_helper.from_array(np.array([0], np.int64), "first"),
        numpy_helper.from_array(np.array([2], np.int64), "last"),
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
        numpy_helper.from_array(np.array(0.0, np.float32), "nothing"),
    ]
    nodes = [
        helper.make_node("Slice", ["observation", "first", "last", "axis"], ["seen"]),
        helper.make_node("Mul", ["seen", "scale"], ["action"]),
        helper.make_node("Mul", ["seen", "nothing"], ["log_std"]),
    ]
    model = model_bytes("scaling", nodes, constants, {"observation": width}, {"action": 2, "log_std": 2})
    kind = "{kind: diagonal_gaussian, log_std: log_std}" if draws else "{kind: deterministic}"
    card = _CARD.format(version=version, width=width, distribution=kind)
    publish(root, "scaling", version, model, card)


def publish_times(
    root: Path, name: str, version: str, factor: float, width: int = 2, *, has_bounds: bool = False
) -> None:
    """Publishes a policy whose action, float32 [width], is its observation times `factor`.

    With `has_bounds` its card has bounds for every element, which makes its spec large.
    """
    bounds = f", low: {[-1e9] * width}, high: {[1e9] * width}" if has_bounds else ""
    constants = [numpy_helper.from_array(np.array(factor, np.float32), "factor")]
    nodes = [helper.make_node("Mul", ["observation", "factor"], ["action"])]
    model = model_bytes("times", nodes, constants, {"observation": width}, {"action": width})
    publish(root, name, version, model, _TIMES_CARD.format(name=name, version=version, width=width, bounds=bounds))


def times(observation: NDArray[Any], factor: float) -> list[float]:
    """Returns what a policy of `publish_times` answers."""
    answer: list[float] = (observation.astype(np.float32) * np.float32(factor)).tolist()
    return answer
