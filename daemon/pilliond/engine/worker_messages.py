"""What a worker says while it starts, checked: nothing of it is trusted beyond its type and its bounds."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Final

import msgspec
import numpy as np

from pillion_worker.errors import EngineError
from pillion_worker.limits import ROW_ELEMENTS_MAX
from pillion_worker.tensors import LoadRequest, Tensor, elements

_Length = Annotated[int, msgspec.Meta(ge=0, le=ROW_ELEMENTS_MAX)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_FLOATS: Final = {"float16", "float32", "float64"}


class ActualTensor(msgspec.Struct, frozen=True):
    """An output as the graph really has it."""

    name: str
    dtype: str
    shape: list[_Length]


class Loaded(msgspec.Struct, frozen=True, tag_field="type", tag="loaded"):
    """The model is loaded."""

    outputs: list[ActualTensor]
    description: dict[str, Any]


class Failed(msgspec.Struct, frozen=True, tag_field="type", tag="failed"):
    """The model was refused; another worker would refuse it too."""

    message: str


class Ready(msgspec.Struct, frozen=True, tag_field="type", tag="ready"):
    """The engine is bound to the arena, and warm."""

    memory: str
    buckets: list[_Count]
    service_ns: list[tuple[_Count, _Count]]
    """The p50 and the p99 of each bucket."""


LOADED: Final[msgspec.json.Decoder[Loaded | Failed]] = msgspec.json.Decoder(Loaded | Failed)
READY: Final[msgspec.json.Decoder[Ready | Failed]] = msgspec.json.Decoder(Ready | Failed)


class RogueError(Exception):
    """A worker did what no worker does. It must be replaced."""


def actual_outputs(loaded: Loaded, request: LoadRequest) -> list[Tensor]:
    """Returns the outputs and parameters of a loaded model.

    Raises `RogueError` if they are not those of the request, and `EngineError` if a row is too large.
    """
    names = [tensor.name for tensor in request.outputs] + request.parameters
    if [tensor.name for tensor in loaded.outputs] != names:
        raise RogueError("its outputs are not those that it was asked for")
    found = [Tensor(tensor.name, tensor.dtype, tensor.shape) for tensor in loaded.outputs]
    for tensor, expected in zip(found, request.outputs, strict=False):
        if np.dtype(expected.dtype).name != tensor.dtype or expected.shape != tensor.shape:
            raise RogueError(f"output {tensor.name!r} is not what its card says")
    for tensor in found[len(request.outputs) :]:
        if tensor.dtype not in _FLOATS:
            raise RogueError(f"output {tensor.name!r}: expected floats")
        if elements(tensor.shape) > ROW_ELEMENTS_MAX:
            raise EngineError(f"output {tensor.name!r}: a row has too many elements")
    return found


def check_ready(ready: Ready, request: LoadRequest) -> None:
    """Raises `RogueError` if the buckets do not cover `rows_max`, or have no service times."""
    buckets = ready.buckets
    ascending = bool(buckets) and buckets[0] > 0 and all(one < next_ for one, next_ in pairwise(buckets))
    if not ascending or not request.rows_max <= buckets[-1] <= request.room:
        raise RogueError("its buckets are not row counts up to rows_max")
    if len(ready.service_ns) != len(buckets):
        raise RogueError("it has not measured each of its buckets")
