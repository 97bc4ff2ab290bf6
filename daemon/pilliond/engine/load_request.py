"""What a worker's engine needs to know of a policy, in the worker's plain words."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pillion_artifacts.card.model_card import EngineCard, StateCard
from pillion_protocol import Spec, TensorSpec
from pillion_worker.tensors import LoadRequest, State, Tensor
from pilliond.ipc.placement import ENGINE_MODULES
from pilliond.limits import CODE_ADDRESS_MB
from pilliond.settings.schema import EngineSettings

TENSORRT_PROVIDER: Final = "TensorrtExecutionProvider"
"""What an ONNX engine says of itself where it runs a TensorRT engine."""

_BYTES_PER_MB: Final = 1_000_000


def load_request(spec: Spec, parameters: list[str], states: Sequence[StateCard], **settings: Any) -> LoadRequest:
    """Describes a policy. `settings` are the other fields of `LoadRequest`."""
    return LoadRequest(
        observation=_tensors(spec.observation),
        outputs=_tensors(spec.outputs),
        parameters=parameters,
        states=[State(state.name, state.output, state.dtype, list(state.shape)) for state in states],
        **settings,
    )


def engine_fields(card: EngineCard, allowed: Sequence[str]) -> dict[str, Any]:
    """Returns the fields of a `LoadRequest` that a card's engine decides. `allowed` is `trust.code`."""
    code: dict[str, Any] = {}
    if card.kind == "python":
        code = {
            "entry_point": card.entry_point,
            "distribution": card.distribution,
            "requires": card.requires,
            "arguments": card.arguments,
            "allowed": list(allowed),
        }
    return {"engine": ENGINE_MODULES[card.kind], "model_kind": card.kind, "code": code}


def worker_fields(settings: EngineSettings, kind: str) -> dict[str, Any]:
    """Returns the fields of a worker's `LoadRequest` that the settings decide."""
    return {
        "threads": settings.threads,
        "strict_rows": settings.one_shape_rows,
        "memory_bytes_max": _address_mb_max(settings, kind) * _BYTES_PER_MB,
        "depth": settings.depth,
        "spin_us": settings.spin_us,
        **device_fields(settings),
    }


def device_fields(settings: EngineSettings) -> dict[str, Any]:
    """Returns the fields of a `LoadRequest` that say where and how to compute. The settings are of one device."""
    return {
        "device": settings.devices[0],
        "device_memory_bytes_max": settings.device_memory_mb * _BYTES_PER_MB,
        "precision": settings.precision,
        "channels_last": settings.channels_last,
        "compiles": settings.compile,
        "keep_warm_ms": settings.keep_warm_ms,
        "provider": settings.provider,
        "build_cache": build_cache_folder(settings, os.environ) if settings.builds else "",
        "build_cache_bytes_max": settings.build_cache_mb_max * _BYTES_PER_MB,
    }


def plain_fields(fallback: str) -> dict[str, Any]:
    """Returns the fields of a `LoadRequest` for a version that computes plainly for that reason; none if it is empty."""
    plain = {"precision": "float32", "channels_last": False, "compiles": False}
    return {**plain, "fallback": fallback} if fallback else {}


def build_cache_folder(settings: EngineSettings, environment: Mapping[str, str]) -> str:
    """Returns the folder of TensorRT engines and compiled programs; empty for a user without a home. See `CacheDirectory=` in systemd.exec(5)."""
    if settings.build_cache_dir:
        return settings.build_cache_dir
    if of_service := environment.get("CACHE_DIRECTORY", "").partition(":")[0]:
        return str(Path(of_service) / "builds")
    try:
        of_user = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return ""
    return str(of_user / "pillion" / "builds")


def why_device_missing(settings: EngineSettings, described: dict[str, Any]) -> str:
    """Returns why an engine, as it describes itself, is not on the device that is required, or not with the provider of ONNX
    Runtime; empty if it is, or none is.
    """
    if not settings.device_required:
        return ""
    device, provider, why = (described.get(name, "") for name in ("device", "provider", "fallback"))
    because = f" ({why})" if why else ""
    (asked,) = settings.devices
    if asked not in ("auto", device):
        return f"engine.device_required: expected {asked}, got {device or 'no device'}{because}"
    if settings.provider == "tensorrt" and device != "cpu" and provider not in ("", TENSORRT_PROVIDER):
        return f"engine.device_required: expected {TENSORRT_PROVIDER}, got {provider}{because}"
    return ""


def _address_mb_max(settings: EngineSettings, kind: str) -> int:
    """The address space of a worker in MB; 0: not limited."""
    # The daemon's own ONNX Runtime is that for the CPU, unless somebody asks it for a device.
    may_use_cuda = kind != "onnx" or bool(settings.python) or settings.devices[0] != "auto"
    if may_use_cuda and settings.devices[0] != "cpu" and has_cuda():
        # CUDA reserves addresses for all memory of the host and of its devices.
        return 0
    return settings.worker_memory_mb_max + (0 if kind == "onnx" else CODE_ADDRESS_MB)


def has_cuda() -> bool:
    """Whether the host seems to have a CUDA device that a worker could use."""
    return Path("/dev/nvidiactl").exists()


def _tensors(specs: list[TensorSpec]) -> list[Tensor]:
    return [Tensor(tensor.name, tensor.dtype, list(tensor.shape)) for tensor in specs]
