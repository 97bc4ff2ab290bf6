"""The shapes that a session agrees upon once: what goes in, what comes out.

Spaces are described in Gymnasium's terms. A step on the wire carries none of this.
"""

from __future__ import annotations

import hashlib
import math
from functools import cached_property
from typing import Annotated, Literal

import msgspec

DType = Literal[
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"
]
Space = Literal["Box", "Discrete", "MultiDiscrete", "MultiBinary"]

_ITEM_BYTES: dict[str, int] = {
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "bool": 1,
}


class TensorSpec(msgspec.Struct, array_like=True, frozen=True, dict=True, forbid_unknown_fields=False):
    """One tensor of a step, without its leading row axis.

    `low` and `high` are inclusive: empty (no bound), one number (for every element), or one for each element
    in C order. Discrete(n, start) has shape [] and bounds [start], [start + n - 1]. `finite`: a NaN or an
    infinity here is refused.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    dtype: DType
    shape: list[Annotated[int, msgspec.Meta(ge=1)]] = []
    space: Space = "Box"
    low: list[float] = []
    high: list[float] = []
    finite: bool = True

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row on the wire."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


class Spec(msgspec.Struct, array_like=True, frozen=True):
    """Observation tensors and output tensors, in the order of their frames."""

    observation: list[TensorSpec]
    outputs: list[TensorSpec]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Spec)


def encode_spec(spec: Spec) -> bytes:
    """The bytes of a spec as the welcome carries them."""
    return _encoder.encode(spec)


def decode_spec(data: bytes) -> Spec:
    """The spec that `data` encodes; raises `msgspec.MsgspecError` where it encodes none."""
    return _decoder.decode(data)


def spec_hash(data: bytes) -> bytes:
    """SHA-256 of the encoded spec: two peers that hold the same hash agree on every frame of every step."""
    return hashlib.sha256(data).digest()
