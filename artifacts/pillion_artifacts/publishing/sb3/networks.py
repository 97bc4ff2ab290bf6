"""The networks of Stable-Baselines3 as graph nodes. Their shapes come from the weights."""

from __future__ import annotations

import re
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pillion_artifacts.card.model_card import Preprocessing
from pillion_artifacts.errors import InvalidSourceError
from pillion_artifacts.publishing.common.spaces import TensorSpace
from pillion_artifacts.publishing.onnx.graph import GraphBuilder
from pillion_artifacts.publishing.sb3.archive import Weights
from pillion_artifacts.publishing.sb3.vec_normalize import Normaliser

_NATURE_STRIDES: Final = (4, 2, 1)
"""Strides of the convolutions of Mnih et al. (2015). The weights do not contain them."""

_SIMPLE_ACTIVATIONS: Final = {
    "ReLU": "Relu",
    "Tanh": "Tanh",
    "Sigmoid": "Sigmoid",
    "Softplus": "Softplus",
    "Softsign": "Softsign",
    "SELU": "Selu",
    "CELU": "Celu",
    "ELU": "Elu",
    "Hardswish": "HardSwish",
}
_CLIPS: Final = {"ReLU6": (0.0, 6.0), "Hardtanh": (-1.0, 1.0)}
ACTIVATIONS: Final = (
    *_SIMPLE_ACTIVATIONS,
    *_CLIPS,
    "LeakyReLU",
    "SiLU",
    "GELU",
    "Mish",
    "Hardsigmoid",
    "LogSigmoid",
    "Tanhshrink",
    "Identity",
)
"""The supported classes of `torch.nn` between layers, with their default arguments."""


def activate(graph: GraphBuilder, value: str, name: str) -> str:
    """Adds the activation of that name in `torch.nn`."""
    if name in _SIMPLE_ACTIVATIONS:
        return graph.node(_SIMPLE_ACTIVATIONS[name], value)
    if name in _CLIPS:
        return graph.node("Clip", value, *map(graph.float32, _CLIPS[name]))
    match name:
        case "LeakyReLU":
            return graph.node("LeakyRelu", value, alpha=0.01)
        case "Hardsigmoid":
            return graph.node("HardSigmoid", value, alpha=1 / 6, beta=0.5)
        case "LogSigmoid":
            return graph.node("Neg", graph.node("Softplus", graph.node("Neg", value)))
        case "Tanhshrink":
            return graph.node("Sub", value, graph.node("Tanh", value))
        case "SiLU":
            return graph.node("Mul", value, graph.node("Sigmoid", value))
        case "Mish":
            return graph.node("Mul", value, graph.node("Tanh", graph.node("Softplus", value)))
        case "GELU":
            wave = graph.node("Erf", graph.node("Mul", value, graph.float32(np.sqrt(0.5))))
            half = graph.node("Mul", value, graph.float32(0.5))
            return graph.node("Mul", half, graph.node("Add", wave, graph.float32(1.0)))
    return value


def linear(graph: GraphBuilder, value: str, weights: Weights, prefix: str) -> str:
    """Adds one fully connected layer, with its bias if it has one."""
    weight = weights.take(f"{prefix}.weight")
    if weight.ndim != 2:
        raise InvalidSourceError(f"policy.pth: {prefix}.weight: expected two axes, got {weight.ndim}")
    inputs = [value, graph.float32(weight)]
    if f"{prefix}.bias" in weights:
        inputs.append(graph.float32(weights.take(f"{prefix}.bias")))
    return graph.node("Gemm", *inputs, transB=1)


def layer_numbers(weights: Weights, prefix: str) -> list[int]:
    """The positions of the layers with weights in the sequence `prefix`."""
    found = (re.fullmatch(rf"{re.escape(prefix)}\.(\d+)\.weight", name) for name in weights.names(prefix))
    return sorted(int(match[1]) for match in found if match)


def mlp(
    graph: GraphBuilder, value: str, weights: Weights, prefix: str, activation: str, *, ends_activated: bool
) -> str:
    """Adds the layers `prefix.0`, `prefix.2`, … with activations between them, and after the last if `ends_activated`."""
    numbers = layer_numbers(weights, prefix)
    if numbers != list(range(0, 2 * len(numbers), 2)):
        raise InvalidSourceError(f"policy.pth: {prefix}: expected layers 0, 2, 4, …, got {numbers}")
    for number in numbers:
        value = linear(graph, value, weights, f"{prefix}.{number}")
        if ends_activated or number != numbers[-1]:
            value = activate(graph, value, activation)
    return value


def nature_cnn(graph: GraphBuilder, value: str, weights: Weights, prefix: str) -> str:
    """Adds the convolutions of `NatureCNN`, flattened, and its linear layer."""
    numbers = layer_numbers(weights, f"{prefix}.cnn")
    if numbers != [0, 2, 4]:
        raise InvalidSourceError(f"policy.pth: {prefix}.cnn: expected layers 0, 2, 4, got {numbers}")
    for number, stride in zip(numbers, _NATURE_STRIDES, strict=True):
        kernel = graph.float32(weights.take(f"{prefix}.cnn.{number}.weight"))
        bias = graph.float32(weights.take(f"{prefix}.cnn.{number}.bias"))
        value = graph.node("Relu", graph.node("Conv", value, kernel, bias, strides=[stride, stride]))
    return graph.node("Relu", linear(graph, graph.node("Flatten", value, axis=1), weights, f"{prefix}.linear.0"))


def lstm(graph: GraphBuilder, value: str, weights: Weights, prefix: str, states: list[str]) -> tuple[str, list[str]]:
    """Adds one step of torch's LSTM. `states` are hidden and cell state of [rows, layers, width].

    Returns the output of [rows, width], and both next states.
    """
    layers = len([name for name in weights.names(prefix) if ".weight_hh_l" in name])
    before = [_split_layers(graph, state, layers) for state in states]
    after: list[list[str]] = [[], []]
    for layer, (hidden, cell) in enumerate(zip(*before, strict=True)):
        value, next_cell = _lstm_cell(graph, value, hidden, cell, weights, f"{prefix}.{{}}_l{layer}")
        after[0].append(value)
        after[1].append(next_cell)
    return value, [_join_layers(graph, parts) for parts in after]


def _lstm_cell(
    graph: GraphBuilder, value: str, hidden: str, cell: str, weights: Weights, pattern: str
) -> tuple[str, str]:
    """Adds one layer. torch orders its gates as input, forget, cell, output."""

    def gates(source: str, side: str) -> str:
        inputs = [source, graph.float32(weights.take(pattern.format(f"weight_{side}")))]
        bias = pattern.format(f"bias_{side}")
        if bias in weights:
            inputs.append(graph.float32(weights.take(bias)))
        return graph.node("Gemm", *inputs, transB=1)

    width = weights.take(pattern.format("weight_hh")).shape[1]
    both = graph.node("Add", gates(value, "ih"), gates(hidden, "hh"))
    parts = graph.nodes("Split", both, graph.int64([width] * 4), outputs=4, axis=1)
    input_gate, forget_gate, output_gate = (graph.node("Sigmoid", parts[index]) for index in (0, 1, 3))
    fresh = graph.node("Mul", input_gate, graph.node("Tanh", parts[2]))
    cell = graph.node("Add", graph.node("Mul", forget_gate, cell), fresh)
    return graph.node("Mul", output_gate, graph.node("Tanh", cell)), cell


def _split_layers(graph: GraphBuilder, state: str, layers: int) -> list[str]:
    return [graph.node("Gather", state, graph.int64(layer), axis=1) for layer in range(layers)]


def _join_layers(graph: GraphBuilder, parts: list[str]) -> str:
    axis = graph.int64([1])
    return graph.node("Concat", *[graph.node("Unsqueeze", part, axis) for part in parts], axis=1)


def preprocess(
    graph: GraphBuilder, name: str, space: TensorSpace, normaliser: Normaliser | None, *, scales_images: bool
) -> tuple[str, list[Preprocessing]]:
    """Adds the graph input `name`. Returns it as the networks' float32 input, and the preprocessing steps."""
    value = graph.input(name, space.dtype, space.shape)
    if space.kind in ("Discrete", "MultiDiscrete"):
        return _one_hot(graph, value, space), [Preprocessing("one_hot", name)]
    steps = []
    if normaliser is not None and name in normaliser.statistics:
        value = _normalise(graph, value, normaliser, name)
        steps.append(Preprocessing("normalise", name, f"clipped to {normaliser.clip}", normaliser.digest))
    elif space.dtype != "float32":
        value = graph.cast(value, "float32")
    if scales_images and space.is_image:
        value = graph.node("Div", value, graph.float32(255.0))
        steps.append(Preprocessing("scale", name, "divided by 255"))
    return value, steps


def _normalise(graph: GraphBuilder, value: str, normaliser: Normaliser, name: str) -> str:
    """Adds the normalisation in doubles, as in VecNormalize, so that the result is bit-equal."""

    def double(values: NDArray[np.float64] | float) -> str:
        return graph.constant(np.asarray(values, np.float64))

    mean, deviation = normaliser.statistics[name]
    centred = graph.node("Sub", graph.cast(value, "float64"), double(mean))
    scaled = graph.node("Div", centred, double(deviation))
    clipped = graph.node("Clip", scaled, double(-normaliser.clip), double(normaliser.clip))
    return graph.cast(clipped, "float32")


def _one_hot(graph: GraphBuilder, value: str, space: TensorSpace) -> str:
    """Adds a one-hot encoding of each element, side by side."""
    columns = graph.node("Reshape", value, graph.int64([-1, len(space.choices)]))
    ends = graph.float32([0.0, 1.0])
    parts = [
        graph.node("OneHot", graph.node("Gather", columns, graph.int64(index), axis=1), graph.int64(size), ends)
        for index, size in enumerate(space.choices)
    ]
    return parts[0] if len(parts) == 1 else graph.node("Concat", *parts, axis=1)
