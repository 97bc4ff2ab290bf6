"""The precision that a program computes in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch

from pillion_worker.tensors import LoadRequest
from pillion_worker.torch_engine.program import Call

HALVES: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""The precisions that torch computes in by casting around its operators."""


def precision_on(device: str, request: LoadRequest) -> tuple[str, str]:
    """The precision to compute in on `cpu` or `cuda:N`, and why it is not the one that was asked for; else empty.

    The CPU computes in bfloat16 only if it was asked for by name: many take longer for it than for float32.
    """
    asked = request.precision
    if device != "cpu" or asked == "float32":
        return asked, ""
    if asked == "bfloat16" and request.device == "cpu":
        return asked, ""
    named = '; to compute in it on the CPU, set engine.device = "cpu"' if asked == "bfloat16" else ""
    return "float32", f"{asked} was asked for: only a CUDA device computes in it{named}"


def in_precision(call: Call, precision: str, place: str) -> Call:
    """The program as it computes in that precision; its outputs are float32 again."""
    half = HALVES.get(precision)
    if half is None:
        return call
    kind = torch.device(place).type

    def call_in_half(*inputs: torch.Tensor) -> Sequence[Any]:
        with torch.autocast(kind, dtype=half):
            made = call(*inputs)
        return [value.float() if getattr(value, "dtype", None) is half else value for value in made]

    return call_in_half
