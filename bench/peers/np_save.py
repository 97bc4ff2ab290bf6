"""msgpack maps whose arrays are complete `.npy` files, as REQ/REP policy loops send them."""

from __future__ import annotations

import io
from typing import Any

import msgpack
import numpy as np

_KEY = "npy"


def pack(value: dict[str, Any]) -> bytes:
    """Encodes a map that may have arrays."""
    packed: bytes = msgpack.packb(value, default=_to_npy)
    return packed


def unpack(data: bytes) -> dict[str, Any]:
    """Decodes a map with its arrays."""
    value: dict[str, Any] = msgpack.unpackb(data, object_hook=_from_npy)
    return value


def _to_npy(array: Any) -> dict[str, bytes]:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return {_KEY: file.getvalue()}


def _from_npy(value: dict[str, Any]) -> Any:
    return np.load(io.BytesIO(value[_KEY]), allow_pickle=False) if _KEY in value else value
