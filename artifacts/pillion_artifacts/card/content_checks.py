"""Checks of the files of a version, made when it is published and again when it is loaded."""

from __future__ import annotations

from typing import Final

from pillion_artifacts.card.model_card import ModelCard, TensorCard, parse_card
from pillion_artifacts.card.onnx_checks import GraphTensor, inspect_onnx
from pillion_artifacts.errors import InvalidArtifactError
from pillion_artifacts.names import version_name

_ONNX_SUFFIX: Final = ".onnx"


def check_card(data: bytes, policy: str, version: str) -> ModelCard:
    """Parses the card of a version. Raises `InvalidArtifactError`, also if it is the card of another version."""
    what = version_name(policy, version)
    try:
        card = parse_card(data)
    except InvalidArtifactError as error:
        raise InvalidArtifactError(f"{what}: {error}") from None
    if (card.name, card.version) != (policy, version):
        raise InvalidArtifactError(f"{what}: the card belongs to {card.name}@{card.version}")
    return card


def check_model(data: bytes | memoryview, card: ModelCard, what: str) -> None:
    """Raises `InvalidArtifactError` if `data` is no self-contained ONNX file, or if it contradicts its card."""
    model = inspect_onnx(data, what)
    _check_tensors(card.observation, model.inputs, "input", what)
    _check_tensors(card.outputs, model.outputs, "output", what)


def check_graph(data: bytes | memoryview, title: str, what: str) -> None:
    """Raises `InvalidArtifactError` for another ONNX file of the version that no loader should read."""
    if title.endswith(_ONNX_SUFFIX):
        inspect_onnx(data, what)


def _check_tensors(expected: list[TensorCard], actual: list[GraphTensor], kind: str, what: str) -> None:
    """Compares what the graph declares. The engine checks undeclared dtypes and shapes when it runs."""
    in_graph = {tensor.name: tensor for tensor in actual}
    for tensor in expected:
        if tensor.name not in in_graph:
            names = ", ".join(in_graph) or "none"
            raise InvalidArtifactError(f"{what}: the card has {kind} {tensor.name!r}, the graph has {names}")
        graph = in_graph[tensor.name]
        if graph.dtype and graph.dtype != tensor.dtype:
            raise InvalidArtifactError(
                f"{what}: {kind} {tensor.name!r}: the card says {tensor.dtype}, the graph {graph.dtype}"
            )
        if graph.shape and not _fits(graph.shape[1:], list(tensor.shape)):
            raise InvalidArtifactError(
                f"{what}: {kind} {tensor.name!r}: the card says a row is {list(tensor.shape)}, the graph {graph.shape[1:]}"
            )


def _fits(graph: list[int | None], card: list[int]) -> bool:
    return len(graph) == len(card) and all(
        actual in (None, expected) for actual, expected in zip(graph, card, strict=True)
    )
