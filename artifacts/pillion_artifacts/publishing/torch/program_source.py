"""Publishes torch programs as they are, for the torch engine. Their source is the network itself, run by torch alone."""

from __future__ import annotations

import gc
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from pillion_artifacts.card.content_checks import check_model, input_names, output_names
from pillion_artifacts.card.golden_pairs import Arrays
from pillion_artifacts.card.model_card import ACTION, EngineCard, ModelCard, TensorCard, check_card
from pillion_artifacts.errors import InvalidSourceError, first_line
from pillion_artifacts.formats.declared_tensor import DeclaredTensor
from pillion_artifacts.formats.torch_program import inspect_torch_program
from pillion_artifacts.limits import PARITY_BATCH_ROWS
from pillion_artifacts.publishing.common.draft import Details, Draft, card_for, derived_card, tool_versions
from pillion_artifacts.publishing.common.files import digest_of_file, open_source
from pillion_artifacts.publishing.common.source_policy import SourceRun
from pillion_artifacts.publishing.torch.pt2_archive import disarm, repack
from pillion_artifacts.publishing.torch.torch_source import (
    Call,
    TorchSource,
    evaluating,
    example_tensors,
    exported,
    load_program,
    load_script,
)


class SourceWhileItRuns:
    """A source that is loaded when it first runs. `release` frees it, so that source and engine need memory in turn."""

    def __init__(self, load: Callable[[], TorchSource]) -> None:
        self._load = load
        self._source: TorchSource | None = None

    def run(self, inputs: Arrays) -> SourceRun:
        if self._source is None:
            self._source = self._load()
        return self._source.run(inputs)

    def release(self) -> None:
        """Frees the source, until it runs again."""
        self._source = None
        # a program refers to itself
        gc.collect()


def program_of_module(module: nn.Module, example: Any, card: ModelCard) -> Draft:
    """As `draft_of_module`, but as a program of torch.export."""
    what = type(module).__name__
    card = msgspec.structs.replace(card, engine=EngineCard("torch"))
    check_card(card)
    tensors = example_tensors(example, input_names(card))
    model = disarm(_saved(module, tensors, what), what)
    check_model(model, card, what)
    return Draft(model, _with_lineage(card, ""), _source(evaluating(module), card))


def import_program(path: Path, details: Details, card: ModelCard | None = None) -> Draft:
    """Imports a file of `torch.export` as it is. Nothing in it that could run is loaded.

    Without a card, inputs and outputs get the program's own names; an only output is the action. Raises
    `InvalidSourceError`, and `InvalidArtifactError` if the card contradicts the program.
    """
    what = path.name
    with open_source(path) as file:
        model = disarm(file, what)
    made = _derived_card(model, details, what) if card is None else card_for(card, details)
    made = msgspec.structs.replace(made, engine=EngineCard("torch"))
    check_card(made)
    check_model(model, made, what)
    source = SourceWhileItRuns(lambda: _source(_by_position(load_program(model, what)), made, PARITY_BATCH_ROWS))
    return Draft(model, _with_lineage(made, digest_of_file(path)), source, release=source.release)


def import_script(path: Path, details: Details, card: ModelCard) -> Draft:
    """Imports TorchScript as it is: only for files that you would run anyway. Raises as `import_program`."""
    what = path.name
    with open_source(path) as file:
        model = repack(file, what)
    made = msgspec.structs.replace(card_for(card, details), engine=EngineCard("torchscript"))
    check_card(made)
    check_model(model, made, what)
    source = SourceWhileItRuns(lambda: _source(load_script(model, what), made, PARITY_BATCH_ROWS))
    return Draft(model, _with_lineage(made, digest_of_file(path)), source, release=source.release)


def _saved(module: nn.Module, tensors: tuple[Tensor, ...], what: str) -> io.BytesIO:
    """A file of torch.export. Raises `InvalidSourceError`."""
    file = io.BytesIO()
    try:
        with warnings.catch_warnings():
            # torch's own deprecation warnings do not concern the publisher
            warnings.simplefilter("ignore")
            torch.export.save(exported(module, tensors), file)
    except Exception as error:  # noqa: BLE001 - torch raises many types for a module that it cannot export
        raise InvalidSourceError(f"{what}: torch cannot export it: {first_line(error.__cause__ or error)}") from None
    file.seek(0)
    return file


def _source(call: Call, card: ModelCard, batch: int | None = None) -> TorchSource:
    return TorchSource(call, input_names(card), output_names(card), card.distribution.logits, batch)


def _by_position(program: torch.export.ExportedProgram) -> Call:
    """Calls a program with tensors in the order of its inputs, however it takes them.

    Returns tensors in the order of its outputs, or a dictionary of them if the program does.
    """
    module, spec = program.module(), program.call_spec.in_spec

    def call(*inputs: Tensor) -> Any:
        arguments, named = torch.utils._pytree.tree_unflatten(list(inputs), spec)
        made = module(*arguments, **named)
        is_flat = isinstance(made, dict) and all(isinstance(value, Tensor) for value in made.values())
        return made if is_flat else torch.utils._pytree.tree_leaves(made)

    return call


def _with_lineage(card: ModelCard, digest: str) -> ModelCard:
    versions = card.lineage.tool_versions or tool_versions("torch")
    lineage = msgspec.structs.replace(card.lineage, source=digest or card.lineage.source, tool_versions=versions)
    return msgspec.structs.replace(card, lineage=lineage)


def _derived_card(model: bytes, details: Details, what: str) -> ModelCard:
    """A card of what the program declares: names, dtypes and shapes."""
    program = inspect_torch_program(memoryview(model), what)
    inputs = program.input_keys or [tensor.name for tensor in program.inputs]
    outputs = program.output_keys or ([ACTION] if len(program.outputs) == 1 else [])
    if ACTION not in outputs:
        raise InvalidSourceError(
            f"{what}: {len(program.outputs)} outputs without names: expected a card that names them"
        )
    return derived_card(_cards(inputs, program.inputs, what), _cards(outputs, program.outputs, what), details, what)


def _cards(names: list[str], tensors: list[DeclaredTensor], what: str) -> list[TensorCard]:
    cards = []
    for name, tensor in zip(names, tensors, strict=True):
        row = [size for size in tensor.shape[1:] if size is not None]
        if len(row) != len(tensor.shape) - 1:
            raise InvalidSourceError(f"{what}: {name!r}: expected rows of a fixed shape, got {tensor.shape}")
        cards.append(TensorCard(name, tensor.dtype, row))  # type: ignore[arg-type]  # check_card refuses what is not a DType
    return cards
