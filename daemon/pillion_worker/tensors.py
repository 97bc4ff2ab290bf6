"""Plain descriptions of tensors, as they travel on the worker channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pillion_worker.channel import PROTOCOL

Array = NDArray[Any]


class Tensor(NamedTuple):
    """One tensor of a policy."""

    name: str
    dtype: str
    shape: list[int]
    """The shape of a row."""


class State(NamedTuple):
    """One recurrent state: a graph reads it as input `name` and writes it as output `output`."""

    name: str
    output: str
    dtype: str
    shape: list[int]
    """The shape of a row."""


class LoadRequest(NamedTuple):
    """What a worker is asked to load."""

    engine: str
    """The name of a module in `engines/`: `onnx`, `torch` or `python`."""

    observation: list[Tensor]
    outputs: list[Tensor]
    parameters: list[str]
    """Further outputs (logits, log_std) that the action's distribution reads."""

    states: list[State]
    rows_max: int
    threads: int = 1
    strict_rows: int = 0
    """The rows of the only shape that batches run in; 0: a batch runs in the smallest bucket that it fits."""

    memory_bytes_max: int = 0
    """The address space of the worker; 0: not limited."""

    depth: int = 1
    """Batches in flight."""

    spin_us: int = 0
    """How long the worker polls for the next batch before it sleeps, while batches follow each other within that time."""

    model_kind: str = "onnx"
    """The format of the model's bytes: that of the card's engine."""

    code: Mapping[str, Any] = {}
    """Of a Python policy: `entry_point`, `distribution`, `requires`, `arguments`, and `allowed`, the packages that the
    settings allow."""

    device: str = "auto"
    """Where to compute: `auto`, `cpu`, or `cuda:N`."""

    device_memory_bytes_max: int = 0
    """The device memory that the version may use; 0: not limited."""

    precision: str = "float32"
    """The precision that was asked for: `float32`, `tf32`, `bfloat16` or `float16`."""

    provider: str = "cuda"
    """What ONNX Runtime computes with on a CUDA device: `cuda` or `tensorrt`."""
    engine_cache: str = ""
    """The folder of built TensorRT engines."""
    engine_cache_bytes_max: int = 0
    builds_engine: bool = False
    """Whether to build the TensorRT engine if the cache has none. A worker that serves only loads it."""

    @property
    def room(self) -> int:
        """The rows that each buffer has: `rows_max`, rounded up to whole strict shapes."""
        return round_up(self.rows_max, self.strict_rows or 1)

    def to_packet(self) -> dict[str, Any]:
        """Returns it as a message of the channel."""
        fields: dict[str, Any] = self._asdict()
        for name in ("observation", "outputs", "states"):
            fields[name] = [tensor._asdict() for tensor in fields[name]]
        return {"type": "load", "protocol": PROTOCOL, **fields}

    @classmethod
    def from_packet(cls, packet: Mapping[str, Any]) -> LoadRequest:
        """Reads it from a message of the channel. Raises `KeyError` or `TypeError` if a field is missing or unknown."""
        fields = {name: value for name, value in packet.items() if name not in ("type", "protocol")}
        for name, kind in (("observation", Tensor), ("outputs", Tensor), ("states", State)):
            fields[name] = [kind(**tensor) for tensor in fields[name]]
        return cls(**fields)


class TensorMemory:
    """The memory of one batch, as arrays [room, …]: it may lie in an arena or in one process alone."""

    __slots__ = ("inputs", "outputs", "states")

    def __init__(self, inputs: list[Array], outputs: dict[str, Array], states: list[tuple[Array, Array]]) -> None:
        self.inputs = inputs
        """One array per observation, in the order of the spec."""
        self.outputs = outputs
        """Every output and parameter by name."""
        self.states = states
        """For each state the array that a run reads, and the one that it writes."""


def row_bytes(dtype: str, shape: Sequence[int]) -> int:
    """The size of a row in bytes."""
    return elements(shape) * np.dtype(dtype).itemsize


def elements(shape: Sequence[int]) -> int:
    """The number of elements in a row."""
    count = 1
    for length in shape:
        count *= length
    return count


def round_up(number: int, step: int) -> int:
    """The smallest multiple of `step` that is not below `number`."""
    return -(-number // step) * step
