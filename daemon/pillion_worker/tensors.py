"""Plain descriptions of tensors, as they travel on the worker channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pillion_worker.channel import PROTOCOL
from pillion_worker.limits import FALLBACK_CHARS_MAX

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

    channels_last: bool = False
    """Whether images were asked to lie in memory with their channels last, as some devices compute faster."""

    compiles: bool = False
    """Whether a program of `torch.export` was asked to run compiled."""

    fallback: str = ""
    """Why `precision`, `channels_last` and `compiles` are not what the settings ask for; empty if they are."""

    keep_warm_ms: int = 0
    """After how long without a batch the device gets something to run, so that it does not slow down; 0: never."""

    provider: str = "cuda"
    """What ONNX Runtime computes with on a CUDA device: `cuda` or `tensorrt`."""

    build_cache: str = ""
    """The folder of TensorRT engines and compiled programs. Empty: there is none, so none is built or loaded."""

    build_cache_bytes_max: int = 0
    """The size of that folder. What was not used for the longest time is removed first."""

    builds: bool = False
    """Whether to build the engine, or compile the program, if the cache has none. A worker that serves only loads it."""

    looks_apart: bool = False
    """Whether to measure from outside what a Python policy takes of devices, which makes two contexts on each. A worker that
    serves does not."""

    @property
    def room(self) -> int:
        """The rows that each buffer has: `rows_max`, rounded up to whole strict shapes."""
        return round_up(self.rows_max, self.strict_rows or 1)

    @property
    def is_plain(self) -> bool:
        """Whether it asks for nothing that a program may not bear: float32, tensors as they come, and not compiled."""
        return self.precision == "float32" and not self.channels_last and not self.compiles

    def made_plain(self, reason: str) -> LoadRequest:
        """The same in float32, with tensors as they come, and not compiled. `reason` is why it is not as it was asked for."""
        fallback = fallback_text(self.precision, self.channels_last, self.compiles, reason)
        return self._replace(precision="float32", channels_last=False, compiles=False, fallback=fallback)

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

    __slots__ = ("inputs", "outputs", "state_rows", "states")

    def __init__(
        self,
        inputs: list[Array],
        outputs: dict[str, Array],
        states: list[tuple[Array, Array]],
        state_rows: Sequence[Array] = (),
    ) -> None:
        self.inputs = inputs
        """One array per observation, in the order of the spec."""
        self.outputs = outputs
        """Every output and parameter by name."""
        self.states = states
        """For each state the array that a run reads, and the one that it writes."""
        self.state_rows = state_rows
        """The numbers of the rows of the state table that a batch reads, and of those that it writes: two arrays of int64,
        each of shape [room]. None where the policy has no state, or the memory lies outside an arena."""


def fallback_text(precision: str, channels_last: bool, compiles: bool, reason: str) -> str:
    """Why a policy computes in float32, with tensors as they come, and not compiled: a sentence of bounded length."""
    asked = [precision] if precision != "float32" else []
    asked += ["channels last"] if channels_last else []
    asked += ["a compiled program"] if compiles else []
    return f"{' and '.join(asked)} was asked for: {reason}"[:FALLBACK_CHARS_MAX]


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
