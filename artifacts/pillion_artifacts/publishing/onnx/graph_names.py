"""Renames the inputs and outputs of a graph to the names in the card."""

from __future__ import annotations

import onnx

from pillion_artifacts.errors import InvalidSourceError


def rename_ports(model: onnx.ModelProto, inputs: list[str], outputs: list[str], what: str) -> None:
    """Renames the graph's inputs and outputs by position.

    Raises `InvalidSourceError` if their numbers differ from the names.
    """
    graph = model.graph
    if (len(graph.input), len(graph.output)) != (len(inputs), len(outputs)):
        raise InvalidSourceError(
            f"{what}: expected {', '.join(inputs)} to {', '.join(outputs)}, "
            f"got {len(graph.input)} inputs and {len(graph.output)} outputs"
        )
    names = {value.name: name for value, name in zip(graph.input, inputs, strict=True)}
    for value, name in zip(graph.output, outputs, strict=True):
        if value.name in names and names[value.name] != name:
            raise InvalidSourceError(f"{what}: one tensor is both {names[value.name]!r} and {name!r}")
        names[value.name] = name
    # an inner value may have one of these names already
    taken = {name: f"{name}_inner" for name in names.values() if name not in names}
    new = {**taken, **names}
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = new.get(value.name, value.name)
