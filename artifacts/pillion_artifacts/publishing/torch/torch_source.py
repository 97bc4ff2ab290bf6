"""Imports torch modules, `torch.export` files and TorchScript. The network itself is the source to compare with."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import onnx
import torch
from torch import Tensor, nn

from pillion_artifacts.card.content_checks import input_names, output_names
from pillion_artifacts.card.golden_pairs import Arrays
from pillion_artifacts.card.model_card import ModelCard, TensorCard, check_card
from pillion_artifacts.errors import InvalidSourceError, first_line
from pillion_artifacts.limits import EXPORT_ROWS_MAX
from pillion_artifacts.oci.manifest import digest_of
from pillion_artifacts.publishing.common.draft import Details, Draft, tool_versions
from pillion_artifacts.publishing.common.files import digest_of_file, open_source, read_file
from pillion_artifacts.publishing.common.observations import draw_observations
from pillion_artifacts.publishing.common.onnx_model import serialize
from pillion_artifacts.publishing.common.source_policy import SourceRun, margin_of
from pillion_artifacts.publishing.onnx.graph import OPSET, ROWS
from pillion_artifacts.publishing.onnx.graph_names import rename_ports
from pillion_artifacts.publishing.onnx.onnx_files import parse_model
from pillion_artifacts.publishing.onnx.onnx_source import check_ports, draft_of_model
from pillion_artifacts.publishing.torch.pt2_archive import disarm

_EXAMPLE_ROWS: Final = 2
_EXPORT_OPSET: Final = 18
_IR_VERSION_NEWEST: Final = 10

# it warns about every package of operators that is not installed
logging.getLogger("torch.onnx._internal.exporter").setLevel(logging.ERROR)

Call = Callable[..., Any]


class TorchSource:
    """A network with inputs and outputs by position. `batch` is its fixed batch, None if it accepts any."""

    def __init__(
        self, call: Call, inputs: list[str], outputs: list[str], logits: str, batch: int | None = None
    ) -> None:
        self._call = call
        self._inputs = inputs
        self._outputs = outputs
        self._logits = logits
        self._batch = batch

    def run(self, inputs: Arrays) -> SourceRun:
        rows = len(inputs[self._inputs[0]])
        batch = self._batch or rows
        parts = [
            self._run_batch(inputs, np.minimum(np.arange(at, at + batch), rows - 1)) for at in range(0, rows, batch)
        ]
        outputs = {name: np.concatenate([part[name] for part in parts])[:rows] for name in self._outputs}
        return SourceRun(outputs, margin_of(outputs[self._logits]) if self._logits else None)

    def _run_batch(self, inputs: Arrays, taken: Any) -> Arrays:
        with torch.no_grad():
            actual = self._call(*(torch.from_numpy(inputs[name][taken]) for name in self._inputs))
        tensors = [actual] if isinstance(actual, Tensor) else actual
        if not isinstance(tensors, dict):
            tensors = dict(zip(self._outputs, tensors, strict=True))
        return {name: tensors[name].detach().numpy() for name in self._outputs}


def draft_of_module(module: nn.Module, example: Any, card: ModelCard) -> Draft:
    """Imports a torch module. `example` is one observation tensor or array, or a tuple or dictionary of them.

    The module takes the card's observations and then its states, by position, rows first. It returns the card's outputs,
    then the next states, then the distribution's parameters. Raises `InvalidSourceError` if torch cannot export it with
    any number of rows, or if it contradicts the card.
    """
    check_card(card)
    inputs, outputs = input_names(card), output_names(card)
    what = type(module).__name__
    tensors = example_tensors(example, inputs)
    model = _to_onnx(lambda: _graph_of(exported(module, tensors)), what)
    rename_ports(model, inputs, outputs, what)
    check_ports(model, card, what)
    lineage = msgspec.structs.replace(card.lineage, tool_versions=card.lineage.tool_versions or tool_versions("torch"))
    source = TorchSource(evaluating(module), inputs, outputs, card.distribution.logits)
    return Draft(serialize(model), msgspec.structs.replace(card, lineage=lineage), source)


def import_exported(path: Path, details: Details, card: ModelCard | None = None, action: str = "") -> Draft:
    """Imports a `torch.export` file (`.pt2`). Nothing in it that could run is loaded.

    `card` as for `import_onnx`; its names replace the program's by position. Raises as `import_onnx`.
    """
    with open_source(path) as file:
        program = load_program(disarm(file, path.name), path.name)
    inputs = list(program.graph_signature.user_inputs) if card is None else input_names(card)
    count = len(program.graph_signature.user_outputs)
    outputs = _program_outputs(count, card, action, path.name)
    model = _to_onnx(lambda: torch.onnx.export(program, dynamo=True, verbose=False), path.name)
    rename_ports(model, [str(name) for name in inputs], outputs, path.name)
    draft = draft_of_model(model, path.name, details, card, action, digest_of_file(path))
    return _with_source(draft, program.module(), model, [str(name) for name in inputs], outputs)


def import_torchscript(path: Path, details: Details, card: ModelCard) -> Draft:
    """Imports a TorchScript file, which is a program: only for files that you would run anyway.

    Inputs and outputs have the card's names by position. Raises as `import_onnx`.
    """
    data = read_file(path)
    inputs, outputs = input_names(card), output_names(card)
    module = load_script(data, path.name)
    model = _to_onnx(lambda: _export_script(module, _drawn(card), inputs, outputs), path.name)
    draft = draft_of_model(model, path.name, details, card, "", digest_of(data))
    return _with_source(draft, module, model, inputs, outputs)


def _with_source(draft: Draft, module: Call, model: onnx.ModelProto, inputs: list[str], outputs: list[str]) -> Draft:
    """The draft with the trained network as its source, in place of the exported graph."""
    first = model.graph.input[0].type.tensor_type.shape.dim[0]
    batch = first.dim_value if first.HasField("dim_value") else None
    lineage = msgspec.structs.replace(draft.card.lineage, tool_versions=tool_versions("torch"))
    return msgspec.structs.replace(
        draft,
        source=TorchSource(module, inputs, outputs, draft.card.distribution.logits, batch),
        card=msgspec.structs.replace(draft.card, lineage=lineage),
    )


def evaluating(module: nn.Module) -> Call:
    """Calls a module as if it were in evaluation mode."""

    def call(*inputs: Tensor) -> Any:
        was_training = module.training
        module.eval()
        try:
            return module(*inputs)
        finally:
            module.train(was_training)

    return call


def example_tensors(example: Any, names: list[str]) -> tuple[Tensor, ...]:
    """The example by position, with at least two rows: torch would treat a single row as a fixed batch."""
    parts = [example[name] for name in names if name in example] if isinstance(example, dict) else example
    parts = list(parts) if isinstance(parts, list | tuple) else [parts]
    if len(parts) != len(names):
        raise InvalidSourceError(f"the example: expected {', '.join(names)}, got {len(parts)} tensors")
    tensors = [part if isinstance(part, Tensor) else torch.from_numpy(np.asarray(part)) for part in parts]
    return tuple(tensor if len(tensor) > 1 else tensor.repeat_interleave(_EXAMPLE_ROWS, dim=0) for tensor in tensors)


def exported(module: nn.Module, tensors: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """The program of a module that is evaluated, with any number of rows. Raises whatever torch raises."""
    rows = torch.export.Dim(ROWS, min=1, max=EXPORT_ROWS_MAX)
    was_training = module.training
    module.eval()
    try:
        return torch.export.export(module, tensors, dynamic_shapes=tuple({0: rows} for _ in tensors))
    finally:
        module.train(was_training)


def _graph_of(program: torch.export.ExportedProgram) -> Any:
    return torch.onnx.export(program, dynamo=True, opset_version=_EXPORT_OPSET, verbose=False)


def _to_onnx(export: Callable[[], Any], what: str) -> onnx.ModelProto:
    """Runs torch's exporter and removes its notes about this machine. Raises `InvalidSourceError`."""
    try:
        with warnings.catch_warnings():
            # torch's own deprecation warnings do not concern the publisher
            warnings.simplefilter("ignore")
            made = export()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise InvalidSourceError(
            f"{what}: converting to ONNX needs the package {package!r}: pip install 'pillion[publish]'; "
            "or choose the engine torch (--engine torch), which serves it as it is"
        ) from None
    except Exception as error:  # noqa: BLE001 - torch raises many types for a module that it cannot export
        raise InvalidSourceError(f"{what}: torch cannot export it: {first_line(error.__cause__ or error)}") from None
    model = made if isinstance(made, onnx.ModelProto) else made.model_proto
    _anonymise(model)
    model.ir_version = min(model.ir_version, _IR_VERSION_NEWEST)
    return model


def _export_script(module: Any, example: tuple[Tensor, ...], inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    """Exports TorchScript with torch's old exporter, the only one that supports it."""
    buffer = io.BytesIO()
    axes = {name: {0: ROWS} for name in (*inputs, *outputs)}
    torch.onnx.export(
        module,
        example,
        buffer,  # type: ignore[arg-type]  # the old exporter accepts a file too
        dynamo=False,
        opset_version=OPSET,
        input_names=inputs,
        output_names=outputs,
        dynamic_axes=axes,
    )
    return parse_model(buffer.getvalue(), "TorchScript")


def _drawn(card: ModelCard) -> tuple[Tensor, ...]:
    states = [TensorCard(state.name, state.dtype, state.shape) for state in card.state]
    values = draw_observations([*card.observation, *states], _EXAMPLE_ROWS)
    return tuple(torch.from_numpy(values[name]) for name in input_names(card))


def load_program(data: bytes, what: str) -> torch.export.ExportedProgram:
    """Loads a disarmed program. Raises `InvalidSourceError`."""
    try:
        return torch.export.load(io.BytesIO(data))
    except Exception as error:  # noqa: BLE001 - a wrong file fails in many ways
        raise InvalidSourceError(f"{what}: torch.export cannot load it: {first_line(error)}") from None


def load_script(data: bytes, what: str) -> Any:
    """Loads TorchScript, which runs it. Raises `InvalidSourceError`."""
    with warnings.catch_warnings():
        # the publisher asked for TorchScript, so its deprecation warning says nothing new
        warnings.simplefilter("ignore")
        try:
            return torch.jit.load(io.BytesIO(data), map_location="cpu").eval()  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise InvalidSourceError(f"{what}: not TorchScript: {first_line(error)}") from None


def _program_outputs(count: int, card: ModelCard | None, action: str, what: str) -> list[str]:
    if card is not None:
        names = output_names(card)
        if len(names) != count:
            raise InvalidSourceError(f"{what}: the card has the outputs {', '.join(names)}, the program has {count}")
        return names
    if count != 1 and not action:
        raise InvalidSourceError(f"{what}: {count} outputs without names: expected a card that names them")
    return ["action"] if count == 1 else [f"output_{index}" for index in range(count)]


def _anonymise(model: onnx.ModelProto) -> None:
    """Removes the exporter's notes about this machine: stack traces, paths, module names."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
