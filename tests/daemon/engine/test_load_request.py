"""What a worker is told of an engine and of the device that it is to compute on."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from pillion_artifacts.card.model_card import EngineCard
from pillion_worker.channel import PROTOCOL
from pillion_worker.tensors import LoadRequest
from pilliond.engine import load_request as module
from pilliond.engine.load_request import (
    build_cache_folder,
    engine_fields,
    load_request,
    why_device_missing,
    worker_fields,
)
from pilliond.limits import CODE_ADDRESS_MB
from pilliond.settings.schema import EngineSettings
from tests.worker.support.policies import summing

PYTHON = EngineCard(
    "python", "my_policy:make", "my-policy", ">=1.2", {"layers": 3, "scale": 0.5, "is_wide": True, "name": "a"}
)


def request_for(card: EngineCard, settings: EngineSettings) -> LoadRequest:
    policy = summing()
    fields = {**engine_fields(card, ["my-policy", "other"]), **worker_fields(settings, card.kind)}
    return load_request(policy.spec, policy.parameters, policy.states, rows_max=8, **fields)


def test_a_request_for_each_kind_survives_the_channel() -> None:
    settings = EngineSettings(device="cuda:1", device_memory_mb=2_000, precision="bfloat16", depth=2, threads=3)
    settings = msgspec.structs.replace(settings, channels_last=True, keep_warm_ms=50)
    for kind, engine in (("onnx", "onnx"), ("torch", "torch"), ("torchscript", "torch"), ("python", "python")):
        card = PYTHON if kind == "python" else EngineCard(kind)  # type: ignore[arg-type] # one of its literals
        request = request_for(card, settings)
        assert (request.engine, request.model_kind) == (engine, kind)
        assert (request.device, request.device_memory_bytes_max, request.precision) == ("cuda:1", 2 * 10**9, "bfloat16")
        assert (request.depth, request.threads) == (2, 3)
        assert (request.channels_last, request.keep_warm_ms, request.fallback) == (True, 50, "")
        packet = request.to_packet()
        assert packet["protocol"] == PROTOCOL
        assert LoadRequest.from_packet(packet) == request


def test_only_a_python_policy_is_told_of_code() -> None:
    assert request_for(EngineCard("torch"), EngineSettings()).code == {}
    assert request_for(PYTHON, EngineSettings()).code == {
        "entry_point": "my_policy:make",
        "distribution": "my-policy",
        "requires": ">=1.2",
        "arguments": {"layers": 3, "scale": 0.5, "is_wide": True, "name": "a"},
        "allowed": ["my-policy", "other"],
    }


def test_engines_are_kept_where_the_settings_say_or_the_service_or_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    named, unnamed = EngineSettings(build_cache_dir="/fast/engines"), EngineSettings()
    service, user = {"CACHE_DIRECTORY": "/var/cache/pillion:/var/cache/other"}, {"XDG_CACHE_HOME": "/caches"}
    assert build_cache_folder(named, {**service, **user}) == "/fast/engines"
    assert build_cache_folder(unnamed, {**service, **user}) == "/var/cache/pillion/builds"
    assert build_cache_folder(unnamed, user) == "/caches/pillion/builds"
    assert build_cache_folder(unnamed, {}) == str(Path.home() / ".cache" / "pillion" / "builds")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    compiled = worker_fields(EngineSettings(compile=True), "torch")
    assert (compiled["compiles"], compiled["build_cache"]) == (True, build_cache_folder(unnamed, os.environ))
    assert worker_fields(unnamed, "torch")["build_cache"] == ""
    monkeypatch.setattr(Path, "home", homeless)
    assert build_cache_folder(unnamed, {}) == ""
    assert worker_fields(unnamed, "onnx")["build_cache"] == ""


def test_a_worker_of_torch_may_reserve_more_addresses_and_one_with_cuda_any(monkeypatch: pytest.MonkeyPatch) -> None:
    def most(kind: str, device: str, python: str = "") -> int:
        settings = EngineSettings(worker_memory_mb_max=1_000, device=device, python=python)
        memory_bytes_max: int = worker_fields(settings, kind)["memory_bytes_max"]
        return memory_bytes_max // 1_000_000

    for has_cuda in (False, True):
        monkeypatch.setattr(module, "has_cuda", lambda has_cuda=has_cuda: has_cuda)
        assert most("onnx", "auto") == most("onnx", "cpu") == 1_000
        # Else the provider of CUDA would not start.
        assert most("onnx", "cuda:0") == most("onnx", "auto", "/opt/gpu/bin/python") == (0 if has_cuda else 1_000)
        assert most("torch", "cpu") == 1_000 + CODE_ADDRESS_MB
        assert most("python", "auto") == (0 if has_cuda else 1_000 + CODE_ADDRESS_MB)
        assert most("torch", "cuda:0") == (0 if has_cuda else 1_000 + CODE_ADDRESS_MB)


@pytest.mark.parametrize(
    ("device", "is_required", "described", "expected"),
    [
        ("cuda:0", True, {"device": "cuda:0"}, ""),
        ("cuda:0", True, {"device": "cpu", "fallback": "no GPU"}, "expected cuda:0, got cpu (no GPU)"),
        ("cuda:1", True, {"device": "cuda:0"}, "expected cuda:1, got cuda:0"),
        ("cuda:0", True, {}, "expected cuda:0, got no device"),
        ("cuda:0", False, {"device": "cpu"}, ""),
        ("auto", True, {"device": "cpu"}, ""),
        ("cuda:0", True, {"device": "cuda:0", "provider": "CUDAExecutionProvider"}, ""),
        ("cpu", True, {"device": "cpu"}, ""),
    ],
)
def test_a_device_that_is_required_is_not_replaced(
    device: str, is_required: bool, described: dict[str, str], expected: str
) -> None:
    settings = EngineSettings(device=device, device_required=is_required)
    why = why_device_missing(settings, described)
    assert why == (f"engine.device_required: {expected}" if expected else "")
