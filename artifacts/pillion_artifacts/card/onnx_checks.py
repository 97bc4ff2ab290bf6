"""Inspects an ONNX file without the `onnx` package, and refuses files that should never reach a loader.

The format is protobuf; the field numbers are those of `onnx.proto` (https://github.com/onnx/onnx). Tensor data is skipped,
not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from pillion_artifacts.errors import InvalidArtifactError
from pillion_artifacts.limits import GRAPH_DEPTH_MAX

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_EXTERNAL: Final = 1

_DTYPES: Final = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip

STANDARD_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Domains of the operators that ONNX Runtime has. Others need a library that the artifact does not contain."""

Field = tuple[int, int | memoryview]


class GraphTensor(msgspec.Struct, frozen=True):
    """An input or output of the graph. A size of None is dynamic; an empty dtype or shape is undeclared."""

    name: str
    dtype: str
    shape: list[int | None]


class OnnxFile(msgspec.Struct, frozen=True):
    """The inputs and outputs of the graph."""

    inputs: list[GraphTensor]
    outputs: list[GraphTensor]


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
    graph: memoryview | None = None
    functions: list[memoryview] = []
    version = 0
    for number, value in _fields(view):
        if number == 1 and isinstance(value, int):
            version = value
        elif number == 7 and isinstance(value, memoryview):
            graph = value
        elif number == 25 and isinstance(value, memoryview):
            functions.append(value)
    if graph is None or not 1 <= version < 1_000:
        raise ValueError("it has no graph")
    # exporters define helper functions in domains of their own; the file contains these
    own = {(_text(function, 10), _text(function, 1)) for function in functions}
    for function in functions:
        _check_nodes(_submessages(function, 7), own, 0)
    _check_graph(graph, own, 0)
    return OnnxFile(
        [_tensor(value) for value in _submessages(graph, 11)], [_tensor(value) for value in _submessages(graph, 12)]
    )


def _check_graph(graph: memoryview, own: set[tuple[str, str]], depth: int) -> None:
    if depth > GRAPH_DEPTH_MAX:
        raise InvalidArtifactError(f"expected graphs nested at most {GRAPH_DEPTH_MAX} deep, got more")
    for number, value in _fields(graph):
        if number == 5 and isinstance(value, memoryview):
            _check_tensor(value)
        elif number == 15 and isinstance(value, memoryview):
            _check_sparse(value)
    _check_nodes(_submessages(graph, 1), own, depth)


def _check_nodes(nodes: Iterator[memoryview], own: set[tuple[str, str]], depth: int) -> None:
    for node in nodes:
        domain, operator = _text(node, 7), _text(node, 4)
        if domain not in STANDARD_DOMAINS and (domain, operator) not in own:
            raise InvalidArtifactError(f"expected operators that ONNX defines, got {operator!r} of {domain!r}")
        for attribute in _submessages(node, 5):
            _check_attribute(attribute, own, depth)


def _check_attribute(attribute: memoryview, own: set[tuple[str, str]], depth: int) -> None:
    for number, value in _fields(attribute):
        if not isinstance(value, memoryview):
            continue
        if number in (6, 11):
            _check_graph(value, own, depth + 1)
        elif number in (5, 10):
            _check_tensor(value)
        elif number in (22, 23):
            _check_sparse(value)


def _check_sparse(tensor: memoryview) -> None:
    for number in (1, 2):
        for part in _submessages(tensor, number):
            _check_tensor(part)


def _check_tensor(tensor: memoryview) -> None:
    location = ""
    external = False
    for number, value in _fields(tensor):
        if number == 14 and value == _EXTERNAL:
            external = True
        elif number == 13 and isinstance(value, memoryview):
            external = True
            if _text(value, 1) == "location":
                location = _text(value, 2)
    if external:
        name = _text(tensor, 8)
        raise InvalidArtifactError(f"expected every weight in the file itself, got {name!r} in {location!r}")


def _tensor(value: memoryview) -> GraphTensor:
    shape: list[int | None] = []
    dtype = ""
    for kind in _submessages(value, 2):
        for tensor in _submessages(kind, 1):
            dtype = _DTYPES.get(_number(tensor, 1), "")
            for dimensions in _submessages(tensor, 2):
                shape = [_number(dimension, 1) or None for dimension in _submessages(dimensions, 1)]
    return GraphTensor(_text(value, 1), dtype, shape)


def _submessages(view: memoryview, wanted: int) -> Iterator[memoryview]:
    return (value for number, value in _fields(view) if number == wanted and isinstance(value, memoryview))


def _text(view: memoryview, wanted: int) -> str:
    text = ""
    for value in _submessages(view, wanted):
        text = bytes(value).decode()
    return text


def _number(view: memoryview, wanted: int) -> int:
    found = 0
    for number, value in _fields(view):
        if number == wanted and isinstance(value, int):
            found = value
    return found


def _fields(view: memoryview) -> Iterator[Field]:
    """The fields of a message: varints as numbers, all others as views of their bytes."""
    position = 0
    while position < len(view):
        key, position = _varint(view, position)
        number, wire_type = key >> 3, key & 7
        if number == 0:
            raise ValueError(f"field number 0 at byte {position}")
        if wire_type == _VARINT:
            value, position = _varint(view, position)
            yield number, value
            continue
        size = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(wire_type)
        if wire_type == _LENGTH:
            size, position = _varint(view, position)
        if size is None or position + size > len(view):
            raise ValueError(f"field {number} at byte {position} reaches beyond the end")
        yield number, view[position : position + size]
        position += size


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError(f"a number at byte {position} has no end")
