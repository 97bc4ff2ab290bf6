"""A version computes as the settings ask if its golden pairs hold then; else in float32, and its request says why."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import numpy as np
import pytest

from pillion_artifacts.card.golden_pairs import Golden, encode_golden
from pillion_artifacts.card.model_card import Distribution, Tolerance
from pillion_protocol import Spec, TensorSpec
from pillion_worker.limits import FALLBACK_CHARS_MAX
from pilliond.engine.interface import EngineError
from pilliond.engine.load_request import plain_fields
from pilliond.ipc.control_channel import VersionRequest
from pilliond.settings.schema import EngineSettings
from pilliond.versions.golden_start import start_checked
from pilliond.versions.loaded_version import Version

SPEC = Spec([TensorSpec("observation", "float32", [1])], [TensorSpec("action", "float32", [1])])
REQUEST = VersionRequest("p", "1.0.0", b"\0" * 32, SPEC, Distribution(), None, Tolerance(), [], 0)
ROWS = np.linspace(1, 2, 4, dtype=np.float32)[:, None]
GOLDEN = encode_golden(Golden({"observation": ROWS}, {"action": 2 * ROWS}))


class Doubling:
    """An engine, and its version, that doubles its observation; `error` comes on top. It describes itself so."""

    def __init__(self, error: float, **described: Any) -> None:
        self.engine = self
        self.inputs = [np.zeros((4, 1), np.float32)]
        self.outputs = {"action": np.zeros((4, 1), np.float32)}
        self.states: list[Any] = []
        self.replicas: list[Any] = []
        self.runs = [lambda: np.copyto(self.outputs["action"], 2 * self.inputs[0] + np.float32(error))] * 5
        self.described = described

    def describe(self) -> dict[str, Any]:
        return self.described


def started(
    settings: EngineSettings, *versions: Doubling, request: VersionRequest = REQUEST, golden: bytes | None = GOLDEN
) -> tuple[Any, list[str]]:
    """The version that serves of those that start one after the other, and the fallback of each request."""
    waiting, fallbacks = list(versions), []

    def start(request: VersionRequest) -> Version:
        fallbacks.append(request.fallback)
        return cast("Version", waiting.pop(0))

    return start_checked(start, request, golden, 4, settings), fallbacks


def test_a_version_whose_golden_pairs_hold_computes_as_the_settings_ask() -> None:
    half = Doubling(0.0, precision="bfloat16")
    assert started(EngineSettings(precision="bfloat16"), half) == (half, [""])


def test_a_version_without_golden_pairs_computes_as_the_settings_ask() -> None:
    half = Doubling(0.5, precision="bfloat16")
    assert started(EngineSettings(precision="bfloat16"), half, golden=None) == (half, [""])


@pytest.mark.parametrize(
    ("settings", "described", "asked"),
    [
        (EngineSettings(precision="bfloat16"), {"precision": "bfloat16"}, "bfloat16"),
        (EngineSettings(precision="tf32"), {}, "tf32"),
        (EngineSettings(channels_last=True), {"precision": "float32", "channels_last": True}, "channels last"),
        (
            EngineSettings(precision="float16", channels_last=True),
            {"precision": "float16", "channels_last": True},
            "float16 and channels last",
        ),
        (EngineSettings(compile=True), {"precision": "float32", "compiled": True}, "a compiled program"),
    ],
)
def test_a_version_whose_golden_pairs_only_hold_in_float32_computes_so_and_says_why(
    settings: EngineSettings, described: dict[str, Any], asked: str
) -> None:
    plain = Doubling(0.0, precision="float32")
    version, fallbacks = started(settings, Doubling(0.5, **described), plain)
    assert version is plain
    assert fallbacks[0] == ""
    assert fallbacks[1].startswith(f"{asked} was asked for: output 'action'")
    plainly = {"precision": "float32", "channels_last": False, "compiles": False}
    assert plain_fields(fallbacks[1]) == {**plainly, "fallback": fallbacks[1]}


def test_a_version_whose_golden_pairs_do_not_hold_in_float32_is_refused() -> None:
    half = EngineSettings(precision="bfloat16")
    with pytest.raises(EngineError, match="output 'action'"):
        started(half, Doubling(0.5, precision="bfloat16"), Doubling(0.25, precision="float32"))


def test_a_version_that_computes_in_float32_already_is_not_started_again() -> None:
    half = EngineSettings(precision="bfloat16", compile=True)
    for version, request in (
        (Doubling(0.5, precision="float32", channels_last=False, compiled=False), REQUEST),
        (Doubling(0.5), msgspec.structs.replace(REQUEST, fallback="before")),
    ):
        with pytest.raises(EngineError, match="output 'action'"):
            started(half, version, request=request)


# Several devices

TWO = ["cpu", "cpu"]
FLOAT32 = {"precision": "float32", "channels_last": False}


def several(error: float, *each: dict[str, Any]) -> Doubling:
    """One on several devices, as `ReplicaEngine` describes it: as the first of them, and each under `replicas`."""
    return Doubling(error, **each[0], replicas=list(each))


@pytest.mark.parametrize(
    ("asked", "second"),
    [
        ({"precision": "bfloat16"}, {**FLOAT32, "precision": "bfloat16"}),
        ({"channels_last": True}, {**FLOAT32, "channels_last": True}),
        # It does not say so.
        ({"precision": "bfloat16"}, {}),
    ],
)
def test_a_version_on_several_devices_is_started_again_if_any_of_them_does_not_compute_in_float32(
    asked: dict[str, Any], second: dict[str, Any]
) -> None:
    plain = several(0.0, FLOAT32, FLOAT32)
    version, fallbacks = started(EngineSettings(device=TWO, **asked), several(0.5, FLOAT32, second), plain)
    assert version is plain
    assert "was asked for: output 'action'" in fallbacks[1]


def test_a_version_on_several_devices_that_computes_in_float32_on_all_is_not_started_again() -> None:
    settings = EngineSettings(device=TWO, precision="bfloat16", channels_last=True)
    with pytest.raises(EngineError, match="output 'action'"):
        started(settings, several(0.5, FLOAT32, FLOAT32))


def test_a_worker_that_says_it_is_several_counts_as_what_it_says_of_itself() -> None:
    settings = EngineSettings(precision="bfloat16")
    plain = Doubling(0.0, **FLOAT32)
    version, _ = started(settings, Doubling(0.5, precision="bfloat16", replicas=[1, 2]), plain)
    assert version is plain


def test_a_long_reason_is_shortened() -> None:
    _, fallbacks = started(EngineSettings(precision="tf32"), Named("x" * 2_000), Doubling(0.0))
    assert len(fallbacks[1]) == FALLBACK_CHARS_MAX


class Named(Doubling):
    """Fails with a long reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(0.0)

        def fail() -> None:
            raise EngineError(reason)

        self.runs = [fail] * 5
