"""Makes rows the first axis of a recurrent graph's states. LSTMs of torch and ONNX have layers first."""

from __future__ import annotations

import onnx
from onnx import helper

from pillion_artifacts.card.model_card import ModelCard, StateCard

Size = int | str | None

_INNER = "layers_first."


def rows_first(model: onnx.ModelProto, card: ModelCard, *, in_doubt: bool = False) -> onnx.ModelProto:
    """Copies the model with states of [layers, rows, …] transposed to [rows, layers, …]. Returns `model` if there are none.

    With one layer and a fixed batch of one, both shapes are equal; `in_doubt` treats such states as layers first.
    """
    values = {value.name: value for value in (*model.graph.input, *model.graph.output)}
    observed = values.get(card.observation[0].name)
    if observed is None:
        return model
    rows = _sizes(observed)[:1]
    names = [
        name
        for state in card.state
        for name in (state.name, state.output)
        if name in values and _is_layers_first(_sizes(values[name]), rows, state, in_doubt)
    ]
    return _transpose(model, set(names)) if names else model


def _is_layers_first(sizes: list[Size], rows: list[Size], state: StateCard, in_doubt: bool) -> bool:
    if len(state.shape) < 2 or sizes != [state.shape[0], *_same_kind(rows, sizes), *state.shape[1:]]:
        return False
    return in_doubt or sizes != [*rows, *state.shape]


def _same_kind(rows: list[Size], sizes: list[Size]) -> list[Size]:
    """The row axis as this tensor declares it: a free axis may have another name than the observation's."""
    is_free = bool(rows) and not isinstance(rows[0], int)
    return sizes[1:2] if is_free and not isinstance(sizes[1], int) else rows


def _sizes(value: onnx.ValueInfoProto) -> list[Size]:
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in dims]


def _transpose(model: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    for node in graph.node:
        node.input[:] = [_INNER + name if name in names else name for name in node.input]
        node.output[:] = [_INNER + name if name in names else name for name in node.output]
    for values, is_input in ((graph.input, True), (graph.output, False)):
        for value in values:
            if value.name in names:
                node = _transpose_value(value, is_input)
                graph.node.insert(0 if is_input else len(graph.node), node)
    onnx.checker.check_model(made, full_check=True)
    return made


def _transpose_value(value: onnx.ValueInfoProto, is_input: bool) -> onnx.NodeProto:
    """Swaps the first two axes of an input or output, and returns the node that swaps them back."""
    dims = value.type.tensor_type.shape.dim
    axes = [1, 0, *range(2, len(dims))]
    swapped = [onnx.TensorShapeProto.Dimension() for _ in axes]
    for dim, axis in zip(swapped, axes, strict=True):
        dim.CopyFrom(dims[axis])
    del dims[:]
    dims.extend(swapped)
    ends = (value.name, _INNER + value.name) if is_input else (_INNER + value.name, value.name)
    return helper.make_node("Transpose", [ends[0]], [ends[1]], perm=axes)
