"""Checks of the files of a version, made when it is published and again when it is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, assert_never

import msgspec

from pillion_artifacts.card.layers import MODEL_NAMES, model_name
from pillion_artifacts.card.model_card import ModelCard, TensorCard, parse_card
from pillion_artifacts.card.onnx_checks import inspect_onnx
from pillion_artifacts.errors import InvalidArtifactError
from pillion_artifacts.formats.declared_tensor import DeclaredTensor
from pillion_artifacts.formats.safetensors_file import inspect_safetensors
from pillion_artifacts.formats.torch_program import TorchProgram, inspect_torch_program
from pillion_artifacts.formats.torchscript_file import check_torchscript
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


def check_files(titles: Iterable[str], card: ModelCard, what: str) -> None:
    """Raises `InvalidArtifactError` unless the only model among these files is the one of the card's engine."""
    expected = model_name(card.engine.kind)
    models = [title for title in titles if title in MODEL_NAMES.values()]
    if models != [expected]:
        raise InvalidArtifactError(
            f"{what}: expected {expected}, since the card's engine is {card.engine.kind}, got {', '.join(models) or 'no model'}"
        )


def check_model(data: bytes | memoryview, card: ModelCard, what: str) -> None:
    """Raises `InvalidArtifactError` if `data` is no self-contained model of the card's engine, or contradicts the card."""
    view = memoryview(data)
    match card.engine.kind:
        case "onnx":
            graph = inspect_onnx(view, what)
            _check_tensors(card.observation, graph.inputs, "input", what)
            _check_tensors(card.outputs, graph.outputs, "output", what)
        case "torch":
            _check_program(inspect_torch_program(view, what), card, what)
        case "torchscript":
            check_torchscript(view, what)
        case "python":
            inspect_safetensors(view, what)
        case kind:
            assert_never(kind)


def check_file(data: bytes | memoryview, title: str, card: ModelCard, what: str) -> None:
    """Raises `InvalidArtifactError` for a file of the version, other than its card, that no loader should read."""
    if title in MODEL_NAMES.values():
        check_model(data, card, what)
    elif title.endswith(_ONNX_SUFFIX):
        inspect_onnx(data, what)


def input_names(card: ModelCard) -> list[str]:
    """The inputs of a torch program, in its order: observations, then states."""
    return [tensor.name for tensor in card.observation] + [state.name for state in card.state]


def output_names(card: ModelCard) -> list[str]:
    """The outputs of a torch program, in its order: outputs, next states, then other parameters of the distribution."""
    names = [tensor.name for tensor in card.outputs] + [state.output for state in card.state]
    return names + [name for name in card.distribution.parameters() if name not in names]


def _check_program(program: TorchProgram, card: ModelCard, what: str) -> None:
    """Compares by position; what the program takes or returns in a dictionary, by name."""
    states = [TensorCard(state.name, state.dtype, state.shape) for state in card.state]
    results = [TensorCard(state.output, state.dtype, state.shape) for state in card.state]
    for kind, names, keys, tensors, expected in (
        ("input", input_names(card), program.input_keys, program.inputs, [*card.observation, *states]),
        ("output", output_names(card), program.output_keys, program.outputs, [*card.outputs, *results]),
    ):
        if len(names) != len(tensors) or (keys and set(keys) != set(names)):
            actual = ", ".join(keys) or f"{len(tensors)}"
            raise InvalidArtifactError(f"{what}: the card has the {kind}s {', '.join(names)}, the program has {actual}")
        for tensor in tensors:
            if not tensor.shape or tensor.shape[0] is not None:
                raise InvalidArtifactError(
                    f"{what}: {kind} {tensor.name!r}: expected a dynamic first axis, for any number of rows, "
                    f"got {tensor.shape}: export it with dynamic_shapes that give axis 0 of every input "
                    f'torch.export.Dim("rows", min=1, max=4096)'
                )
        _check_tensors(expected, _named(keys or names, tensors), kind, what)


def _named(names: list[str], tensors: list[DeclaredTensor]) -> list[DeclaredTensor]:
    return [msgspec.structs.replace(tensor, name=name) for name, tensor in zip(names, tensors, strict=True)]


def _check_tensors(expected: list[TensorCard], actual: list[DeclaredTensor], kind: str, what: str) -> None:
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
