"""The placement of a version: whether its engine runs inside the serving process, and why; and its service times."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Where = Literal["inline", "worker"]

ENGINE_MODULES: Final = {"onnx": "onnx", "torch": "torch", "torchscript": "torch", "python": "python"}
"""The module of `pillion_worker.engines` for each kind of a card's engine."""


class Placement(msgspec.Struct, frozen=True):
    """Where the engine of a version runs: `inline` in the serving process, or in a `worker` of its own."""

    where: Where
    reason: str
    """Why, as one clause."""


class ServiceTime(msgspec.Struct, frozen=True):
    """How long a run of `rows` rows takes, in µs."""

    rows: int
    p50_us: float
    p99_us: float
