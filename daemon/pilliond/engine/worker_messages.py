"""What a worker says while it starts, checked: nothing of it is trusted beyond its type and its bounds."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Final, Literal

import msgspec
import numpy as np

from pillion_worker.arena import ArenaLayout
from pillion_worker.errors import EngineError
from pillion_worker.limits import (
    ARENA_BYTES_MAX,
    DESCRIPTION_BYTES_MAX,
    DESCRIPTION_KEYS_MAX,
    RANK_MAX,
    ROW_ELEMENTS_MAX,
)
from pillion_worker.tensors import LoadRequest, Tensor, elements
from pilliond.limits import ENGINE_DEVICES_MAX, WORKER_START_S_MAX

_Length = Annotated[int, msgspec.Meta(ge=0, le=ROW_ELEMENTS_MAX)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_ServiceNs = Annotated[int, msgspec.Meta(ge=0, le=round(WORKER_START_S_MAX * 1_000_000_000))]
"""It measured before it was ready, so no run took longer than its start may take."""
_Number = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Description = Annotated[dict[str, str | _Number | bool | list[_Number]], msgspec.Meta(max_length=DESCRIPTION_KEYS_MAX)]
_FLOATS: Final = {"float16", "float32", "float64"}


class ActualTensor(msgspec.Struct, frozen=True):
    """An output as the graph really has it."""

    name: str
    dtype: str
    shape: Annotated[list[_Length], msgspec.Meta(max_length=RANK_MAX)]


class Loaded(msgspec.Struct, frozen=True, tag_field="type", tag="loaded"):
    """The model is loaded."""

    outputs: list[ActualTensor]
    description: _Description
    """For operators. It goes on to the control process, so that it must be one that can: short, and without depth."""


class Failed(msgspec.Struct, frozen=True, tag_field="type", tag="failed"):
    """The model was refused; another worker would refuse it too."""

    message: str


class DeviceMemory(msgspec.Struct, frozen=True):
    """What a warm version takes of one of its devices, in bytes."""

    device: Annotated[str, msgspec.Meta(pattern=r"^cuda:[0-9]{1,4}\Z")]
    used_bytes: _Count
    free_bytes: _Count
    """What was free before it was loaded, beside every other version."""
    total_bytes: _Count


class Ready(msgspec.Struct, frozen=True, tag_field="type", tag="ready"):
    """The engine is bound to the arena, and warm."""

    memory: Literal["pinned", "locked", "pageable"]
    buckets: list[_Count]
    service_ns: list[tuple[_ServiceNs, _ServiceNs]]
    """The p50 and the p99 of each bucket."""
    device_memory: Annotated[list[DeviceMemory], msgspec.Meta(max_length=ENGINE_DEVICES_MAX)] = []
    """Empty where it takes nothing of a device, or that could not be measured."""


LOADED: Final[msgspec.json.Decoder[Loaded | Failed]] = msgspec.json.Decoder(Loaded | Failed)
READY: Final[msgspec.json.Decoder[Ready | Failed]] = msgspec.json.Decoder(Ready | Failed)


class RogueError(Exception):
    """A worker did what no worker does. It must be replaced."""


def actual_outputs(loaded: Loaded, request: LoadRequest) -> list[Tensor]:
    """Returns the outputs and parameters of a loaded model.

    Raises `RogueError` if they are not those of the request or the description is too long, and `EngineError` if no arena
    can hold them.
    """
    if len(msgspec.json.encode(loaded.description)) > DESCRIPTION_BYTES_MAX:
        raise RogueError(f"its description has more than {DESCRIPTION_BYTES_MAX} bytes")
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
    arena_bytes = ArenaLayout(request.observation, found, request.states, request.room, request.depth).total_bytes
    if arena_bytes > ARENA_BYTES_MAX:
        raise EngineError(f"its batches need {arena_bytes} bytes; the most is {ARENA_BYTES_MAX}")
    return found


def check_ready(ready: Ready, request: LoadRequest) -> None:
    """Raises `RogueError` if the buckets do not cover `rows_max`, or have no service times that can be."""
    buckets = ready.buckets
    ascending = bool(buckets) and buckets[0] > 0 and all(one < next_ for one, next_ in pairwise(buckets))
    if not ascending or not request.rows_max <= buckets[-1] <= request.room:
        raise RogueError("its buckets are not row counts up to rows_max")
    if len(ready.service_ns) != len(buckets):
        raise RogueError("it has not measured each of its buckets")
    if any(p50_ns > p99_ns for p50_ns, p99_ns in ready.service_ns):
        raise RogueError("it has a p50 that is above its p99")
