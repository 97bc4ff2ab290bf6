"""Reads an ONNX file and its data files into one model, and refuses references to other places."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, inliner

from pillion_artifacts.card.onnx_checks import STANDARD_DOMAINS
from pillion_artifacts.errors import InvalidSourceError, first_line
from pillion_artifacts.limits import SOURCE_BYTES_MAX
from pillion_artifacts.publishing.common.files import PICKLE_MAGIC, ZIP_MAGIC, read_file

_RANDOM: Final = frozenset(
    ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
)
"""Their results cannot be repeated from an episode's seed."""


def read_model(path: Path) -> tuple[onnx.ModelProto, bytes]:
    """Reads a checked model with all its data and with inlined functions, and the bytes of the file.

    Raises `InvalidSourceError` if it is no ONNX, if its data is outside its folder, or if it has custom operators.
    """
    data = read_file(path)
    model = parse_model(data, path.name)
    _embed_data(model, path)
    if model.functions:
        model = inliner.inline_local_functions(model)
    check_operators(model, path.name)
    _infer_output_shapes(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise InvalidSourceError(f"{path.name}: not a valid model: {first_line(error)}") from None
    return model, data


def parse_model(data: bytes, what: str) -> onnx.ModelProto:
    """Decodes a model. Raises `InvalidSourceError`."""
    for magic, name in ((PICKLE_MAGIC, "a pickle"), (ZIP_MAGIC, "a zip")):
        if data.startswith(magic):
            raise InvalidSourceError(f"{what}: expected ONNX, got {name}")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise InvalidSourceError(f"{what}: expected ONNX: {first_line(error)}") from None
    if not model.graph.output:
        raise InvalidSourceError(f"{what}: expected ONNX, got something without a graph")
    return model


def check_operators(model: onnx.ModelProto, what: str) -> None:
    """Raises `InvalidSourceError` for an operator that ONNX Runtime does not have, or that is random."""
    for node in _nodes(model.graph):
        if node.domain not in STANDARD_DOMAINS:
            raise InvalidSourceError(
                f"{what}: node {node.name or node.output[0]!r}: operator {node.domain}.{node.op_type} is not one of ONNX Runtime's"
            )
        if node.op_type in _RANDOM:
            raise InvalidSourceError(
                f"{what}: node {node.name or node.output[0]!r}: {node.op_type} is random: expected a graph that returns "
                "the deterministic action and the parameters of its distribution"
            )


def _infer_output_shapes(model: onnx.ModelProto) -> None:
    """Infers the shapes of outputs that some exporters leave out."""
    if all(value.type.tensor_type.HasField("shape") for value in model.graph.output):
        return
    inferred = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.output}
    for value in model.graph.output:
        if not value.type.tensor_type.HasField("shape"):
            value.CopyFrom(inferred[value.name])


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes(inner)


def _embed_data(model: onnx.ModelProto, path: Path) -> None:
    """Moves the data of files beside the model into it."""
    files: dict[str, bytes] = {}
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            _embed_tensor(tensor, path, files)


def _embed_tensor(tensor: TensorProto, path: Path, files: dict[str, bytes]) -> None:
    what = f"{path.name}: tensor {tensor.name!r}"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    name = entries.get("location", "")
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise InvalidSourceError(f"{what}: expected its data in a file beside the model, got {name!r}")
    if name not in files:
        if sum(map(len, files.values())) > SOURCE_BYTES_MAX:
            raise InvalidSourceError(f"{path.name}: expected at most {SOURCE_BYTES_MAX} bytes of data")
        files[name] = read_file(path.parent / name)
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", len(files[name]) - offset))
    except ValueError:
        raise InvalidSourceError(f"{what}: expected numbers for offset and length") from None
    if min(offset, length) < 0 or offset + length > len(files[name]):
        raise InvalidSourceError(f"{what}: bytes {offset} to {offset + length} are not in {name!r}")
    tensor.raw_data = files[name][offset : offset + length]
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)
        sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        for part in (*sparse, *attribute.sparse_tensors):
            yield from (part.values, part.indices)
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _graph_tensors(inner)
