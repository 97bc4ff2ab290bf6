"""Imports an ONNX file: embeds its data, frees its batch, and names the output `action`."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import helper

from pillion_artifacts.card.golden_pairs import Arrays
from pillion_artifacts.card.model_card import ACTION, ModelCard, TensorCard, check_card
from pillion_artifacts.errors import InvalidSourceError
from pillion_artifacts.limits import PROOF_BATCHES
from pillion_artifacts.oci.manifest import digest_of
from pillion_artifacts.publishing.common.draft import Details, Draft, card_for, derived_card, tool_versions
from pillion_artifacts.publishing.common.observations import draw_observations
from pillion_artifacts.publishing.common.onnx_model import OnnxModel, serialize
from pillion_artifacts.publishing.common.source_policy import SourceRun, margin_of
from pillion_artifacts.publishing.onnx.free_batch import (
    Port,
    fixed_batch,
    free_batch,
    graph_inputs,
    ports,
    prove_free_batch,
)
from pillion_artifacts.publishing.onnx.onnx_files import parse_model, read_model
from pillion_artifacts.publishing.onnx.state_axes import rows_first


class OnnxSource:
    """The original model, run in batches of its fixed size."""

    def __init__(self, model: OnnxModel, batch: int | None, names: dict[str, str], logits: str) -> None:
        self._model = model
        self._batch = batch
        self._names = names
        self._logits = logits

    def run(self, inputs: Arrays) -> SourceRun:
        rows = len(next(iter(inputs.values())))
        actual = self._model.run(inputs) if self._batch is None else self._run_batches(inputs, rows, self._batch)
        outputs = {self._names.get(name, name): values[:rows] for name, values in actual.items()}
        return SourceRun(outputs, margin_of(outputs[self._logits]) if self._logits else None)

    def _run_batches(self, inputs: Arrays, rows: int, batch: int) -> Arrays:
        parts = []
        for first in range(0, rows, batch):
            taken = np.minimum(np.arange(first, first + batch), rows - 1)
            parts.append(self._model.run({name: values[taken] for name, values in inputs.items()}))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def import_onnx(path: Path, details: Details, card: ModelCard | None = None, action: str = "") -> Draft:
    """Imports an ONNX file. A model that needs no change is published byte for byte.

    `card` describes the inputs and outputs; without it they are taken from the graph. `action` names the action's
    output, if no output is named `action`. Raises `InvalidSourceError`, `InvalidArtifactError` for a wrong card, and
    `ParityError` if a free batch changes the results.
    """
    model, data = read_model(path)
    is_whole = serialize(model) == serialize(parse_model(data, path.name))
    verbatim = data if is_whole else None
    if card is None or not card.state:
        return draft_of_model(model, path.name, details, card, action, digest_of(data), verbatim)
    transposed = rows_first(model, card)
    if transposed is not model:
        return draft_of_model(transposed, path.name, details, card, action, digest_of(data))
    try:
        return draft_of_model(model, path.name, details, card, action, digest_of(data), verbatim)
    except InvalidSourceError:
        other = rows_first(model, card, in_doubt=True)
        if other is model:
            raise
        return draft_of_model(other, path.name, details, card, action, digest_of(data))


def draft_of_model(
    model: onnx.ModelProto,
    what: str,
    details: Details,
    card: ModelCard | None,
    action: str,
    digest: str,
    verbatim: bytes | None = None,
) -> Draft:
    """As `import_onnx`, for a decoded model. `digest` is that of the source, `verbatim` the original bytes of the model."""
    source = OnnxModel(serialize(model) if verbatim is None else verbatim)
    batch = fixed_batch(model)
    freed = model if batch is None else free_batch(model, batch)
    chosen = _action_output(freed, card, action, what)
    published = _name_action(freed, chosen)
    made = _finish_card(published, details, card, digest, what)
    if batch is not None:
        _prove(source, OnnxModel(serialize(freed)), batch, made)
    return Draft(
        model=verbatim if verbatim is not None and published is model else serialize(published),
        card=made,
        source=OnnxSource(source, batch, {chosen: ACTION}, made.distribution.logits),
    )


def check_ports(model: onnx.ModelProto, card: ModelCard, what: str) -> None:
    """Raises `InvalidSourceError` if the card contradicts the graph's inputs and outputs."""
    inputs = {port.name: port for port in ports(graph_inputs(model), what)}
    expected = [Port(c.name, c.dtype, list(c.shape)) for c in card.observation]
    expected += [Port(c.name, c.dtype, list(c.shape)) for c in card.state]
    if sorted(inputs) != sorted(port.name for port in expected):
        names = sorted(port.name for port in expected)
        raise InvalidSourceError(f"{what}: the graph's inputs are {sorted(inputs)}, the card's {names}")
    outputs = {port.name: port for port in ports(list(model.graph.output), what)}
    results = [Port(c.name, c.dtype, list(c.shape)) for c in card.outputs]
    results += [Port(c.output, c.dtype, list(c.shape)) for c in card.state]
    for port, among in [*((port, inputs) for port in expected), *((port, outputs) for port in results)]:
        if port.name not in among:
            raise InvalidSourceError(f"{what}: the graph has no output {port.name!r}, it has {', '.join(outputs)}")
        if among[port.name] != port:
            actual = among[port.name]
            raise InvalidSourceError(
                f"{what}: {port.name!r}: the card says {port.dtype} {port.shape}, the graph {actual.dtype} {actual.shape}"
            )
    for name in card.distribution.parameters():
        if name not in outputs:
            raise InvalidSourceError(f"{what}: the graph has no output {name!r}, which the card's distribution reads")


def _action_output(model: onnx.ModelProto, card: ModelCard | None, action: str, what: str) -> str:
    """The name of the action's output."""
    names = [str(value.name) for value in model.graph.output]
    if action:
        if action not in names:
            raise InvalidSourceError(f"{what}: the graph has no output {action!r}, it has {', '.join(names)}")
        if action != ACTION and ACTION in names:
            raise InvalidSourceError(f"{what}: expected {ACTION!r} as the action, which the graph has, got {action!r}")
        return action
    if ACTION in names:
        return ACTION
    others = set() if card is None else {tensor.name for tensor in card.outputs} | set(card.distribution.parameters())
    free = [name for name in names if name not in others]
    if len(free) != 1:
        raise InvalidSourceError(f"{what}: which output is the action? expected one of {', '.join(names)} to be named")
    return free[0]


def _name_action(model: onnx.ModelProto, chosen: str) -> onnx.ModelProto:
    """The same model with the output `chosen` renamed to `action`."""
    if chosen == ACTION:
        return model
    named = onnx.ModelProto()
    named.CopyFrom(model)
    for value in named.graph.output:
        if value.name == chosen:
            value.name = ACTION
    named.graph.node.append(helper.make_node("Identity", [chosen], [ACTION]))
    onnx.checker.check_model(named, full_check=True)
    return named


def _finish_card(model: onnx.ModelProto, details: Details, card: ModelCard | None, digest: str, what: str) -> ModelCard:
    made = _derived_card(model, details, what) if card is None else card_for(card, details)
    lineage = msgspec.structs.replace(made.lineage, source=digest)
    if not lineage.tool_versions:
        lineage = msgspec.structs.replace(lineage, tool_versions=tool_versions())
    made = msgspec.structs.replace(made, lineage=lineage)
    check_card(made)
    check_ports(model, made, what)
    return made


def _derived_card(model: onnx.ModelProto, details: Details, what: str) -> ModelCard:
    """A card from the graph: names, dtypes and shapes. A graph has no bounds."""

    def cards(values: list[onnx.ValueInfoProto]) -> list[TensorCard]:
        return [TensorCard(port.name, port.dtype, port.shape) for port in ports(values, what)]  # type: ignore[arg-type]  # parse_card refuses what is not a DType

    outputs = [card for card in cards(list(model.graph.output)) if card.name == ACTION]
    return derived_card(cards(graph_inputs(model)), outputs, details, what)


def _prove(before: OnnxModel, after: OnnxModel, batch: int, card: ModelCard) -> None:
    tensors = [*card.observation, *(TensorCard(part.name, part.dtype, part.shape) for part in card.state)]
    prove_free_batch(before, after, batch, draw_observations(tensors, batch * PROOF_BATCHES))
