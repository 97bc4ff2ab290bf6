"""Policies of different names whose answers can be computed exactly: the observation times a number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tests.daemon.support.graphs import model_bytes
from tests.harness import publish

_CARD = """
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
    publish(root, name, version, model, _CARD.format(name=name, version=version, width=width, bounds=bounds))


def times(observation: NDArray[Any], factor: float) -> list[float]:
    """Returns what a policy of `publish_times` answers."""
    answer: list[float] = (observation.astype(np.float32) * np.float32(factor)).tolist()
    return answer
