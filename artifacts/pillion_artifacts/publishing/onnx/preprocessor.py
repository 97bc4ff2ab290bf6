"""Puts a preprocessor in front of a policy: one graph with the preprocessor's input.

skl2onnx converts scikit-learn pipelines. They must be objects: a pipeline's file is a pickle, and is not read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import compose, helper, version_converter

from pillion_artifacts.card.golden_pairs import Arrays
from pillion_artifacts.card.model_card import Preprocessing, TensorCard, check_card
from pillion_artifacts.errors import InvalidSourceError, first_line
from pillion_artifacts.oci.manifest import digest_of
from pillion_artifacts.publishing.common.draft import Draft
from pillion_artifacts.publishing.common.onnx_model import OnnxModel, serialize
from pillion_artifacts.publishing.common.source_policy import SourcePolicy, SourceRun
from pillion_artifacts.publishing.onnx.free_batch import Port, fixed_batch, free_batch, graph_inputs, ports
from pillion_artifacts.publishing.onnx.graph import OPSET
from pillion_artifacts.publishing.onnx.graph_names import rename_ports
from pillion_artifacts.publishing.onnx.onnx_files import read_model

_PREFIX = "before."
_FLOATS = {"float16", "float32", "float64"}

Transform = Callable[[NDArray[Any]], NDArray[Any]]


class PreprocessedSource:
    """A source with a preprocessor in front of one observation."""

    def __init__(self, source: SourcePolicy, name: str, transform: Transform, dtype: str) -> None:
        self._source = source
        self._name = name
        self._transform = transform
        self._dtype = dtype

    def run(self, inputs: Arrays) -> SourceRun:
        transformed = np.asarray(self._transform(inputs[self._name]), self._dtype)
        return self._source.run({**inputs, self._name: transformed})


def fuse_pipeline(draft: Draft, pipeline: Any, observation: TensorCard) -> Draft:
    """Puts a fitted scikit-learn pipeline in front of a draft. Its `transform` is the source to compare with.

    `observation` describes the pipeline's input, one axis of floats, under the name of the observation that it makes.
    Raises `InvalidSourceError` if skl2onnx cannot convert a step, or if the shapes do not match.
    """
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    kinds = {"float32": FloatTensorType, "float64": DoubleTensorType}
    if observation.dtype not in kinds or len(observation.shape) != 1:
        raise InvalidSourceError(
            f"the pipeline: expected one axis of float32 or float64, got {observation.dtype} {list(observation.shape)}"
        )
    model = onnx.load_model_from_string(draft.model)
    initial_types = [(observation.name, kinds[observation.dtype]([None, observation.shape[0]]))]
    try:
        front = to_onnx(pipeline, initial_types=initial_types, target_opset={"": _opset(model), "ai.onnx.ml": 3})
    except Exception as error:  # noqa: BLE001 - each of its converters raises errors of its own
        raise InvalidSourceError(f"the pipeline: skl2onnx cannot convert it: {first_line(error)}") from None
    steps = ", ".join(type(step).__name__ for _, step in getattr(pipeline, "steps", [("", pipeline)]))
    return _fuse(
        draft, model, front, pipeline.transform, observation, Preprocessing("pipeline", observation.name, steps)
    )


def fuse_onnx(draft: Draft, path: Path, observation: str = "") -> Draft:
    """Puts an ONNX graph with one input and one output in front of a draft; it makes the policy's `observation`.

    Without a name, it makes the policy's only observation. Raises `InvalidSourceError`.
    """
    model = onnx.load_model_from_string(draft.model)
    front, data = read_model(path)
    batch = fixed_batch(front)
    front = front if batch is None else free_batch(front, batch)
    (taken,) = _single(ports(graph_inputs(front), path.name), "input", path.name)
    name = observation or _single(draft.card.observation, "observation of the policy", path.name)[0].name
    run = OnnxModel(serialize(front))
    card = TensorCard(name, taken.dtype, taken.shape)
    step = Preprocessing("pipeline", name, path.name, digest_of(data))
    return _fuse(draft, model, front, lambda values: run.run({taken.name: values})[run.outputs[0]], card, step)


def _single(parts: list[Any], kind: str, what: str) -> list[Any]:
    if len(parts) != 1:
        raise InvalidSourceError(f"{what}: expected one {kind}, got {len(parts)}")
    return parts


def _fuse(
    draft: Draft,
    model: onnx.ModelProto,
    front: onnx.ModelProto,
    transform: Transform,
    observation: TensorCard,
    step: Preprocessing,
) -> Draft:
    """Joins both graphs, and adapts card and source."""
    replaced = next((card for card in draft.card.observation if card.name == observation.name), None)
    if replaced is None:
        raise InvalidSourceError(f"the preprocessor: the policy has no observation {observation.name!r}")
    (made,) = _single(ports(list(front.graph.output), "the preprocessor"), "output", "the preprocessor")
    if made.dtype != replaced.dtype and {made.dtype, replaced.dtype} <= _FLOATS:
        made = _cast(front, made, replaced.dtype)
    if (made.dtype, made.shape) != (replaced.dtype, list(replaced.shape)):
        raise InvalidSourceError(
            f"the preprocessor makes {made.dtype} {made.shape}, the policy takes {replaced.dtype} {list(replaced.shape)}"
        )
    fused = _merge(front, model, made.name, observation.name)
    card = msgspec.structs.replace(
        draft.card,
        observation=[observation if card is replaced else card for card in draft.card.observation],
        preprocessing=[step, *draft.card.preprocessing],
    )
    check_card(card)
    assert draft.source is not None, "only an ONNX graph has a preprocessor, and that always has a source"
    source = PreprocessedSource(draft.source, observation.name, transform, replaced.dtype)
    return Draft(serialize(fused), card, source)


def _cast(front: onnx.ModelProto, made: Port, dtype: str) -> Port:
    """Adds a cast to the end of the preprocessor, for a pipeline of doubles before a policy of floats."""
    (output,) = front.graph.output
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    front.graph.node.append(helper.make_node("Cast", [made.name], [f"{made.name}_{dtype}"], to=kind))
    output.name = f"{made.name}_{dtype}"
    output.type.tensor_type.elem_type = kind
    return Port(output.name, dtype, made.shape)


def _opset(model: onnx.ModelProto) -> int:
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), OPSET)


def _merge(front: onnx.ModelProto, model: onnx.ModelProto, made: str, taken: str) -> onnx.ModelProto:
    before = compose.add_prefix(front, _PREFIX)
    before.ir_version = model.ir_version
    try:
        if _opset(before) != _opset(model):
            before = version_converter.convert_version(before, _opset(model))
            before.ir_version = model.ir_version
        fused = compose.merge_models(before, model, io_map=[(f"{_PREFIX}{made}", taken)])
    except (ValueError, RuntimeError, onnx.checker.ValidationError) as error:
        raise InvalidSourceError(f"the preprocessor: cannot be put in front: {first_line(error)}") from None
    inputs = [taken if value.name.startswith(_PREFIX) else value.name for value in fused.graph.input]
    rename_ports(fused, inputs, [value.name for value in fused.graph.output], "the preprocessor")
    onnx.checker.check_model(fused, full_check=True)
    return fused
