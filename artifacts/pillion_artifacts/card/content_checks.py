"""What the files of a version must be, whoever made them: looked at when they are published, and again when they are loaded."""

from __future__ import annotations

from typing import Final

from pillion_artifacts.card.model_card import ModelCard, TensorCard, parse_card
from pillion_artifacts.card.onnx_checks import GraphTensor, inspect_onnx
from pillion_artifacts.errors import InvalidArtifactError
from pillion_artifacts.names import version_name

_ONNX_SUFFIX: Final = ".onnx"


def check_card(data: bytes, policy: str, version: str) -> ModelCard:
    """The card of that very version; raises `InvalidArtifactError`."""
    what = version_name(policy, version)
    try:
        card = parse_card(data)
    except InvalidArtifactError as error:
        raise InvalidArtifactError(f"{what}: {error}") from None
    if (card.name, card.version) != (policy, version):
        raise InvalidArtifactError(f"{what}: the card is that of {card.name}@{card.version}")
    return card


def check_model(data: bytes | memoryview, card: ModelCard, what: str) -> None:
    """Raises `InvalidArtifactError` for a file that is no ONNX, that needs what it does not hold, or that denies its card."""
    model = inspect_onnx(data, what)
    _check_tensors(card.observation, model.inputs, "input", what)
    _check_tensors(card.outputs, model.outputs, "output", what)


def check_graph(data: bytes | memoryview, title: str, what: str) -> None:
    """Raises `InvalidArtifactError` for a further ONNX file that should reach no loader."""
    if title.endswith(_ONNX_SUFFIX):
        inspect_onnx(data, what)


def _check_tensors(expected: list[TensorCard], actual: list[GraphTensor], kind: str, what: str) -> None:
    """Only what the graph states can be compared; the engine looks at the rest when it runs."""
    offered = {tensor.name: tensor for tensor in actual}
    for tensor in expected:
        if tensor.name not in offered:
            names = ", ".join(offered) or "none"
            raise InvalidArtifactError(f"{what}: the card has {kind} {tensor.name!r}, the graph has {names}")
        graph = offered[tensor.name]
        if graph.dtype and graph.dtype != tensor.dtype:
            raise InvalidArtifactError(
                f"{what}: {kind} {tensor.name!r}: the card says {tensor.dtype}, the graph {graph.dtype}"
            )
        if graph.shape and not _fits(graph.shape[1:], list(tensor.shape)):
            raise InvalidArtifactError(
                f"{what}: {kind} {tensor.name!r}: the card says a row is {list(tensor.shape)}, the graph {graph.shape[1:]}"
            )


def _fits(graph: list[int | None], card: list[int]) -> bool:
    return len(graph) == len(card) and all(given in (None, asked) for given, asked in zip(graph, card, strict=True))
