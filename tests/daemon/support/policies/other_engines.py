"""Policies that are no ONNX graph: Python policies of the packages that tests install, and torch programs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from pillion_artifacts import Store
from pillion_artifacts.card.golden_pairs import Golden, encode_golden
from pillion_artifacts.card.layers import GOLDEN_NAME, MODEL_NAMES
from tests.worker.support.installed import EXAMPLE, HOSTILE, TAKING, mlp_actions, mlp_weights

Arrays = dict[str, NDArray[np.float32]]

OBSERVATIONS: NDArray[np.float32] = np.random.default_rng(5).standard_normal((16, 8)).astype(np.float32)
"""What the golden pairs of `perceptron` hold."""

SUMMED: NDArray[np.float32] = np.random.default_rng(6).standard_normal((16, 3)).astype(np.float32)
"""What the golden pairs of `sum` hold."""

_SUM = """
schema: 3
name: sum
version: {version}
description: The sum of its observation, times a factor.
licence: Apache-2.0
observation:
- {{name: observation, dtype: float32, shape: [3]}}
outputs:
- {{name: action, dtype: float32, shape: [1]}}
engine: {{kind: {kind}}}
"""

_PERCEPTRON = """
schema: 3
name: perceptron
version: {version}
description: A multilayer perceptron in numpy.
licence: Apache-2.0
observation:
- {{name: observation, dtype: float32, shape: [8]}}
outputs:
- {{name: action, dtype: float32, shape: [4]}}
engine: {{kind: python, entry_point: "{module}:{factory}", distribution: {distribution}, requires: "{requires}"}}
"""

_HOSTILE = """
schema: 3
name: hostile
version: {version}
description: Doubles its observation, and misbehaves.
licence: Apache-2.0
observation:
- {{name: observation, dtype: float32, shape: [1]}}
outputs:
- {{name: action, dtype: float32, shape: [1]}}
engine: {{kind: python, entry_point: "pillion_hostile_policies:make", distribution: {distribution}, arguments: {arguments}}}
"""


_TAKING = """
schema: 3
name: taking
version: {version}
description: Doubles its observation, and takes memory of devices.
licence: Apache-2.0
observation:
- {{name: observation, dtype: float32, shape: [1]}}
outputs:
- {{name: action, dtype: float32, shape: [1]}}
engine: {{kind: python, entry_point: "{module}:make", distribution: {distribution}, arguments: {arguments}}}
"""


def publish_perceptron(
    root: Path,
    version: str,
    seed: int = 0,
    *,
    golden_seed: int | None = None,
    factory: str = "mlp",
    requires: str = "",
) -> None:
    """Publishes a version of `perceptron`, of the package `EXAMPLE`, with weights of that seed.

    `golden_seed` makes its golden pairs those of other weights.
    """
    expected = mlp_actions(mlp_weights(seed if golden_seed is None else golden_seed), OBSERVATIONS)
    fields = {"module": EXAMPLE.replace("-", "_"), "distribution": EXAMPLE, "requires": requires, "factory": factory}
    card = _PERCEPTRON.format(version=version, **fields)
    golden = Golden({"observation": OBSERVATIONS}, {"action": expected})
    publish_weights(root, "perceptron", version, mlp_weights(seed), card, golden)


def perceptron_actions(seed: int, observations: NDArray[np.float32] = OBSERVATIONS) -> NDArray[np.float32]:
    """What `perceptron` with weights of that seed answers."""
    return mlp_actions(mlp_weights(seed), observations)


def publish_hostile(root: Path, version: str, **arguments: Any) -> None:
    """Publishes a version of `hostile`, of the package `HOSTILE`; `arguments` are those of its factory."""
    text = "{" + ", ".join(f"{name}: {value}" for name, value in arguments.items()) + "}"
    card = _HOSTILE.format(version=version, distribution=HOSTILE, arguments=text)
    publish_weights(root, "hostile", version, {"nothing": np.zeros(1, np.float32)}, card)


def publish_taking(root: Path, version: str, **values: int) -> None:
    """Publishes a version of `taking`, of the package `TAKING`; `values` are the arguments of its factory."""
    text = "{" + ", ".join(f"{name}: {value}" for name, value in values.items()) + "}"
    fields = {"module": TAKING.replace("-", "_"), "distribution": TAKING, "arguments": text}
    weights = {"nothing": np.zeros(1, np.float32)}
    publish_weights(root, "taking", version, weights, _TAKING.format(version=version, **fields))


def publish_weights(
    root: Path, policy: str, version: str, weights: Arrays, card: str, golden: Golden | None = None
) -> None:
    """Publishes a Python policy of these weights and this card."""
    publish_model(root, policy, version, "python", save(weights), card, golden)


def publish_sum(root: Path, version: str, kind: str, model: bytes, factor: float) -> None:
    """Publishes a version of `sum`, whose action, float32 [1], is the sum of its observation, float32 [3], times `factor`.

    `model` is that of the engine `kind`.
    """
    observation = SUMMED
    golden = Golden({"observation": observation}, {"action": sum_actions(factor)})
    publish_model(root, "sum", version, kind, model, _SUM.format(version=version, kind=kind), golden)


def sum_actions(factor: float, observations: NDArray[np.float32] = SUMMED) -> NDArray[np.float32]:
    """What `sum` answers."""
    actions: NDArray[np.float32] = factor * observations.sum(axis=1, keepdims=True, dtype=np.float32)
    return actions


def publish_model(
    root: Path, policy: str, version: str, kind: str, model: bytes, card: str, golden: Golden | None = None
) -> None:
    """Publishes a policy of an engine of this kind."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / MODEL_NAMES[kind]).write_bytes(model)
        (folder / "model_card.yaml").write_text(card)
        if golden is not None:
            (folder / GOLDEN_NAME).write_bytes(encode_golden(golden))
        Store(root).publish(policy, version, folder, created_by="a test")
