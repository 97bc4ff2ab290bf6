"""Where a version runs: small and bounded ONNX graphs inside the serving process, all others in a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from pilliond.engine.interface import EngineError
from pilliond.ipc.placement import Placement

Setting = Literal["auto", "inline", "worker"]

_KINDS: Final = {"torch": "a torch program", "torchscript": "a TorchScript program", "python": "a Python policy"}
"""The kinds of a card's engine that only a worker runs, in words."""


def place_by_kind(setting: Setting, kind: str, devices: Sequence[str] = ("auto",)) -> Placement | None:
    """Returns where a version runs because of what it is; None for an ONNX graph, of which `decide` decides.

    `kind` is that of the card's engine. A graph that is to run on another device than the CPU, or on several, is no longer
    the serving process's. Raises `EngineError` if `setting`, which is `engine.placement`, asks for another place.
    """
    if kind not in _KINDS:
        is_elsewhere = len(devices) > 1 or (setting == "auto" and devices[0].startswith("cuda"))
        return Placement("worker", f"engine.device is {', '.join(devices)}") if is_elsewhere else None
    if setting == "inline":
        raise EngineError(f"engine.placement is inline, and it is {_KINDS[kind]}: expected auto or worker")
    return Placement("worker", f"it is {_KINDS[kind]}")


def place_beforehand(
    setting: Setting, kind: str, devices: Sequence[str], unbounded: str, earlier: Placement | None
) -> Placement | None:
    """Returns where a version runs, if that is known before it is loaded; None for a bounded graph that must be measured.

    `earlier` is what was decided when it was staged or loaded before, if it was. The rest is as in `place_by_kind` and
    `decide`. Raises `EngineError` as the former.
    """
    placement = place_by_kind(setting, kind, devices) or earlier
    if placement is None and (setting != "auto" or unbounded):
        return decide(setting, unbounded, {}, 0.0)
    return placement


def needs_worker(
    setting: Setting, kind: str, devices: Sequence[str], unbounded: str, earlier: Placement | None
) -> bool:
    """Whether `place_beforehand` places a version in a worker. Raises nothing: a version that is refused needs none."""
    try:
        placement = place_beforehand(setting, kind, devices, unbounded, earlier)
    except EngineError:
        return False
    return placement is not None and placement.where == "worker"


def decide(setting: Setting, unbounded: str, p99_us_by_bucket: Mapping[int, float], inline_us_max: float) -> Placement:
    """Decides where an ONNX version runs.

    `setting` is `engine.placement`, `unbounded` says why its graph is not bounded (empty: it is), `p99_us_by_bucket` holds
    the measured p99 of each bucket of rows, in µs. With `auto`, a version runs inline if its graph is bounded and every p99
    is below `inline_us_max`.
    """
    if setting != "auto":
        doubt = f", although it is not bounded: {unbounded}" if setting == "inline" and unbounded else ""
        return Placement(setting, f"engine.placement is {setting}{doubt}")
    if unbounded:
        return Placement("worker", f"it is not bounded: {unbounded}")
    if not p99_us_by_bucket:
        return Placement("worker", "its service time is not known")
    rows, p99_us = max(p99_us_by_bucket.items(), key=lambda item: item[1])
    if p99_us >= inline_us_max:
        return Placement("worker", f"{rows} rows take {p99_us:.0f} µs (p99), engine.inline_us_max is {inline_us_max:g}")
    return Placement("inline", f"it is bounded, and {rows} rows take {p99_us:.0f} µs (p99)")
