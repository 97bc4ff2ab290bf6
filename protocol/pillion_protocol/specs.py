"""The spec: names, dtypes and shapes of observations and outputs, agreed on once for each session.

Spaces use Gymnasium's terms. The messages of a step carry none of this.
"""

from __future__ import annotations

import hashlib
import math
from functools import cached_property
from typing import Annotated, Final, Literal

import msgspec

DType = Literal[
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"
]
Space = Literal["Box", "Discrete", "MultiDiscrete", "MultiBinary", "Text"]

TEXT: Final = "Text"
"""The space of text observations."""

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
    """One tensor of a step; `shape` is that of one row, without the row axis.

    `low` and `high` are inclusive bounds: empty (no bound), one number (for every element), or one for each element
    in C order. Discrete(n, start) has shape [] and the bounds [start] and [start + n - 1]. If `finite` is true, an
    observation with a NaN or an infinity is refused. An observation of integers out of its bounds is refused.

    An observation of text has the space `Text`, the dtype uint8 and the shape [bytes_max]: the UTF-8 bytes of the text, then
    zero bytes (see `pillion_protocol.texts`). Its `low` is empty or the least number of bytes, its `high` is empty.

    `space` is one of `Space`, or a newer one that a reader may treat as a Box.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    dtype: DType
    shape: list[Annotated[int, msgspec.Meta(ge=1)]] = []
    space: str = "Box"
    low: list[float] = []
    high: list[float] = []
    finite: bool = True

    @cached_property
    def row_bytes(self) -> int:
        """The bytes of one row on the wire."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]

    @cached_property
    def is_text(self) -> bool:
        """Whether its rows hold text."""
        return self.space == TEXT and self.dtype == "uint8" and len(self.shape) == 1

    @cached_property
    def text_bytes_min(self) -> int:
        """The least number of bytes of an observation of text."""
        return int(self.low[0]) if self.low and math.isfinite(self.low[0]) else 0


class Spec(msgspec.Struct, array_like=True, frozen=True):
    """The observation tensors and the output tensors, in the order of their frames."""

    observation: list[TensorSpec]
    outputs: list[TensorSpec]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Spec)


def encode_spec(spec: Spec) -> bytes:
    """Returns the bytes of a spec as the welcome carries them."""
    return _encoder.encode(spec)


def decode_spec(data: bytes) -> Spec:
    """Returns the spec in `data`. Raises `msgspec.MsgspecError` (or `UnicodeDecodeError`, `RecursionError`) if there is none."""
    return _decoder.decode(data)


def spec_hash(data: bytes) -> bytes:
    """Returns the SHA-256 of an encoded spec. Two peers with the same hash agree on every frame of every step."""
    return hashlib.sha256(data).digest()
