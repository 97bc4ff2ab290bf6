"""Inspects an ONNX file without the `onnx` package, and refuses files that should never reach a loader.

The format is protobuf; the field numbers are those of `onnx.proto` (https://github.com/onnx/onnx). Tensor data is skipped,
not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from pillion_artifacts.card.protobuf import fields, merged, number, submessages, text
from pillion_artifacts.errors import InvalidArtifactError
from pillion_artifacts.formats.declared_tensor import DeclaredTensor
from pillion_artifacts.limits import GRAPH_DEPTH_MAX

_EXTERNAL: Final = 1

DTYPES: Final = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip
"""The data types that a tensor of a policy can have, by their number in a file."""

STANDARD_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Domains of the operators that ONNX Runtime has. Others need a library that the artifact does not contain."""


class OnnxFile(msgspec.Struct, frozen=True):
    """The inputs and outputs of the graph."""

    inputs: list[DeclaredTensor]
    outputs: list[DeclaredTensor]


def inspect_onnx(data: bytes | memoryview, what: str) -> OnnxFile:
    """Reads the inputs and outputs of the ONNX file in `data`.

    Raises `InvalidArtifactError` if it is no ONNX file, if weights are in another file, and for operators that ONNX
    does not define.
    """
    view = memoryview(data)
    _check_disguise(view, what)
    try:
        return _inspect_model(view)
    except InvalidArtifactError as error:
        raise InvalidArtifactError(f"{what}: {error}") from None
    except (IndexError, ValueError) as error:
        raise InvalidArtifactError(f"{what}: not an ONNX file: {error}") from None


def _check_disguise(view: memoryview, what: str) -> None:
    begins = bytes(view[:4])
    if begins[:1] == b"\x80" and begins[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise InvalidArtifactError(f"{what}: expected an ONNX file, got a pickle")
    if begins == b"PK\x03\x04":
        raise InvalidArtifactError(f"{what}: expected an ONNX file, got a zip file")


def _inspect_model(view: memoryview) -> OnnxFile:
    graph = merged(view, 7)
    if graph is None or not 1 <= number(view, 1) < 1_000:
        raise ValueError("it has no graph")
    functions = list(submessages(view, 25))
    # exporters define helper functions in domains of their own; the file contains these
    own = {(text(function, 10), text(function, 1)) for function in functions}
    for function in functions:
        _check_nodes(submessages(function, 7), own, 0)
    _check_graph(graph, own, 0)
    return OnnxFile(
        [_tensor(value) for value in submessages(graph, 11)], [_tensor(value) for value in submessages(graph, 12)]
    )


def _check_graph(graph: memoryview, own: set[tuple[str, str]], depth: int) -> None:
    if depth > GRAPH_DEPTH_MAX:
        raise InvalidArtifactError(f"expected graphs nested at most {GRAPH_DEPTH_MAX} deep, got more")
    for field, value in fields(graph):
        if field == 5 and isinstance(value, memoryview):
            _check_tensor(value)
        elif field == 15 and isinstance(value, memoryview):
            _check_sparse(value)
    _check_nodes(submessages(graph, 1), own, depth)


def _check_nodes(nodes: Iterator[memoryview], own: set[tuple[str, str]], depth: int) -> None:
    for node in nodes:
        domain, operator = text(node, 7), text(node, 4)
        if domain not in STANDARD_DOMAINS and (domain, operator) not in own:
            raise InvalidArtifactError(f"expected operators that ONNX defines, got {operator!r} of {domain!r}")
        for attribute in submessages(node, 5):
            _check_attribute(attribute, own, depth)


def _check_attribute(attribute: memoryview, own: set[tuple[str, str]], depth: int) -> None:
    for field, value in fields(attribute):
        if not isinstance(value, memoryview):
            continue
        if field in (6, 11):
            _check_graph(value, own, depth + 1)
        elif field in (5, 10):
            _check_tensor(value)
        elif field in (22, 23):
            _check_sparse(value)


def _check_sparse(tensor: memoryview) -> None:
    for field in (1, 2):
        for part in submessages(tensor, field):
            _check_tensor(part)


def _check_tensor(tensor: memoryview) -> None:
    location = ""
    external = False
    for field, value in fields(tensor):
        if field == 14 and value == _EXTERNAL:
            external = True
        elif field == 13 and isinstance(value, memoryview):
            external = True
            if text(value, 1) == "location":
                location = text(value, 2)
    if external:
        name = text(tensor, 8)
        raise InvalidArtifactError(f"expected every weight in the file itself, got {name!r} in {location!r}")


def _tensor(value: memoryview) -> DeclaredTensor:
    shape: list[int | None] = []
    dtype = ""
    for kind in submessages(value, 2):
        for tensor in submessages(kind, 1):
            dtype = DTYPES.get(number(tensor, 1), "")
            for dimensions in submessages(tensor, 2):
                shape = [number(dimension, 1) or None for dimension in submessages(dimensions, 1)]
    return DeclaredTensor(text(value, 1), dtype, shape)
