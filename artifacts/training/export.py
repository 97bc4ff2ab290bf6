"""Exports a trained torch module to ONNX, and publishes it with its card."""

from __future__ import annotations

import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from evaluate import mean_return, onnx_session
from gymnasium import spaces
from torch import Tensor, nn

from pillion_artifacts import ModelCard, Store
from pillion_artifacts.card.layers import CARD_NAME, MODEL_NAME
from pillion_artifacts.card.model_card import TensorCard
from pillion_artifacts.card.yaml_card import dump_card

OPSET = 18
IR_VERSION_MAX = 10
TOLERANCE = 1e-5
MODEL_BYTES_MAX = 2_000_000
CHECKED_ROWS = (1, 3, 64)
ROWS = "rows"


class CategoricalActor(nn.Module):
    """Maps observations to the most likely actions (int64 [rows]) and their logits (float32 [rows, n])."""

    output_names = ("action", "logits")

    def __init__(self, logits: nn.Module) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, observation: Tensor) -> tuple[Tensor, ...]:
        logits = self.logits(observation)
        return logits.argmax(dim=1), logits


class CategoricalActorCritic(nn.Module):
    """As `CategoricalActor`, with value and log-probability of the action (both float32 [rows]) before the logits."""

    output_names = ("action", "value", "log_probability", "logits")

    def __init__(self, logits: nn.Module, value: nn.Module) -> None:
        super().__init__()
        self.logits = logits
        self.value = value

    def forward(self, observation: Tensor) -> tuple[Tensor, ...]:
        logits = self.logits(observation)
        log_probability = logits.log_softmax(dim=1).amax(dim=1)
        return logits.argmax(dim=1), self.value(observation).squeeze(1), log_probability, logits


def observation_card(space: spaces.Box) -> TensorCard:
    """Returns the card of a Box observation: a single bound if all elements share it, none if any is infinite."""

    def bounds(values: np.ndarray[Any, Any]) -> list[float]:
        if not np.isfinite(values).all():
            return []
        # The shortest decimal is the same float32; + 0.0 makes a negative zero positive.
        numbers = [float(str(value)) + 0.0 for value in values.ravel()]
        return numbers[:1] if len(set(numbers)) == 1 else numbers

    return TensorCard(
        name="observation",
        dtype=str(space.dtype),  # type: ignore[arg-type]  # parse_card refuses any other dtype
        shape=list(space.shape),
        low=bounds(space.low),
        high=bounds(space.high),
    )


def discrete_card(space: spaces.Discrete[Any]) -> TensorCard:
    """Returns the card of a Discrete action."""
    first = int(space.start)
    return TensorCard("action", "int64", [], "Discrete", [float(first)], [float(first + int(space.n) - 1)])


def tool_versions(*more: str) -> dict[str, str]:
    """Returns the versions of Python, of the tools for training and export, and of the distributions in `more`."""
    names = sorted({"gymnasium", "numpy", "onnx", "onnxruntime", "torch", *more})
    # Drops a local label such as +cpu: it names torch's build, and the weights do not depend on it.
    return {"python": platform.python_version(), **{name: version(name).partition("+")[0] for name in names}}


def export_onnx(module: CategoricalActor | CategoricalActorCritic, space: spaces.Box) -> bytes:
    """Returns the module as one ONNX file with a free row axis, checked against torch at several batch sizes."""
    module.eval()
    example = _observations(space, rows=2)
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["observation"],
        output_names=list(module.output_names),
        dynamic_shapes={"observation": {0: torch.export.Dim(ROWS, min=1, max=65536)}},
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    _anonymise(model)
    model.ir_version = min(model.ir_version, IR_VERSION_MAX)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    _check(module, data, space)
    return data


def write_artifact(root: Path, card: ModelCard, model: bytes) -> str:
    """Publishes model and card into the store at `root`; returns the artifact digest.

    Raises `VersionExistsError` if the store has that version: train into another store, or use a new number.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / MODEL_NAME).write_bytes(model)
        (folder / CARD_NAME).write_bytes(dump_card(card))
        return Store(root).publish(card.name, card.version, folder, created_by="pillion", reason="trained").digest


def measure_and_publish(card: ModelCard, model: bytes, episodes: int, root: Path) -> None:
    """Measures the exported model, publishes it with that metric in its card, and prints its digest and metric."""
    metric = mean_return(card, model, episodes=episodes)
    digest = write_artifact(root, msgspec.structs.replace(card, metrics={"mean_return": metric}), model)
    print(f"{card.name}@{card.version} {digest}: {len(model)} bytes, {metric}")


def _observations(space: spaces.Box, rows: int) -> Tensor:
    space.seed(rows)
    return torch.from_numpy(np.stack([space.sample() for _ in range(rows)]))


def _check(module: CategoricalActor | CategoricalActorCritic, data: bytes, space: spaces.Box) -> None:
    if len(data) > MODEL_BYTES_MAX:
        raise ValueError(f"the model: expected at most {MODEL_BYTES_MAX} bytes, got {len(data)}")
    session = onnx_session(data)
    for rows in CHECKED_ROWS:
        observation = _observations(space, rows)
        with torch.inference_mode():
            expected = module(observation)
        actual = session.run(list(module.output_names), {"observation": observation.numpy()})
        for tensor, array in zip(expected, actual, strict=True):
            assert array.shape == tuple(tensor.shape)
            assert array.dtype == tensor.numpy().dtype
            # Near a tie rounding may change the action, so it must follow from the graph's own logits, not torch's.
            reference = actual[-1].argmax(axis=1) if array.dtype == np.int64 else tensor.numpy()
            scale = max(1.0, float(np.abs(reference).max()))
            np.testing.assert_allclose(array, reference, rtol=TOLERANCE, atol=TOLERANCE * scale)


def _anonymise(model: onnx.ModelProto) -> None:
    """Removes what the exporter writes about its machine: stack traces, paths, module names."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    data = model.SerializeToString()
    for trace in (b"/tmp", b"/home", b"site-packages", str(Path.home()).encode(), str(Path.cwd()).encode()):
        assert trace not in data, f"the model still contains {trace!r}"
