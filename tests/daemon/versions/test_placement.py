"""A version runs inside the serving process only if it is bounded and fast, or if an operator says so."""

from __future__ import annotations

import pytest

from pilliond.engine.interface import EngineError
from pilliond.ipc.placement import Placement
from pilliond.versions.placement import Setting, decide, needs_worker, place_by_kind

FAST = {1: 10.0, 8: 20.0, 256: 60.0}
LOOP = "its graph has a Loop"


def test_auto_places_a_bounded_and_fast_version_inline() -> None:
    assert decide("auto", "", FAST, 200.0) == Placement("inline", "it is bounded, and 256 rows take 60 µs (p99)")


@pytest.mark.parametrize("slow_rows", [1, 8, 256])
def test_auto_places_a_version_in_a_worker_if_any_bucket_is_slow(slow_rows: int) -> None:
    placement = decide("auto", "", FAST | {slow_rows: 200.0}, 200.0)
    assert placement == Placement("worker", f"{slow_rows} rows take 200 µs (p99), engine.inline_us_max is 200")


def test_auto_places_an_unbounded_version_in_a_worker_however_fast_it_is() -> None:
    assert decide("auto", LOOP, FAST, 200.0) == Placement("worker", "it is not bounded: its graph has a Loop")


def test_auto_does_not_guess_how_fast_a_version_is() -> None:
    assert decide("auto", "", {}, 200.0).where == "worker"


@pytest.mark.parametrize("unbounded", ["", LOOP])
def test_an_operator_may_decide(unbounded: str) -> None:
    assert decide("worker", unbounded, FAST, 200.0) == Placement("worker", "engine.placement is worker")
    inline = decide("inline", unbounded, {1: 1e6}, 200.0)
    assert inline.where == "inline"
    assert (LOOP in inline.reason) == bool(unbounded)


KINDS = {"torch": "a torch program", "torchscript": "a TorchScript program", "python": "a Python policy"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_onnx_graph_runs_in_a_worker(kind: str) -> None:
    settings: tuple[Setting, ...] = ("auto", "worker")
    for setting in settings:
        assert place_by_kind(setting, kind) == Placement("worker", f"it is {KINDS[kind]}")
    with pytest.raises(
        EngineError, match=rf"^engine\.placement is inline, and it is {KINDS[kind]}: expected auto or worker$"
    ):
        place_by_kind("inline", kind)


def test_of_an_onnx_graph_the_kind_decides_nothing() -> None:
    settings: tuple[Setting, ...] = ("auto", "inline", "worker")
    for setting in settings:
        assert place_by_kind(setting, "onnx") is None


def test_an_onnx_graph_that_is_to_run_on_another_device_runs_in_a_worker() -> None:
    assert place_by_kind("auto", "onnx", ["cuda:1"]) == Placement("worker", "engine.device is cuda:1")
    assert place_by_kind("auto", "onnx", ["cpu"]) is None
    assert place_by_kind("inline", "onnx", ["cuda:1"]) is None


def test_an_onnx_graph_on_several_devices_runs_in_workers() -> None:
    settings: tuple[Setting, ...] = ("auto", "worker")
    for setting in settings:
        assert place_by_kind(setting, "onnx", ["cpu", "cpu"]) == Placement("worker", "engine.device is cpu, cpu")


INLINE, WORKER = Placement("inline", "it was"), Placement("worker", "it was")


@pytest.mark.parametrize(
    ("setting", "kind", "unbounded", "earlier", "expected"),
    [
        ("auto", "onnx", "", None, False),
        ("auto", "onnx", LOOP, None, True),
        ("auto", "onnx", "", WORKER, True),
        ("auto", "onnx", LOOP, INLINE, False),
        ("worker", "onnx", "", None, True),
        ("inline", "onnx", LOOP, None, False),
        ("auto", "torch", "", None, True),
        ("inline", "torch", "", None, False),
    ],
)
def test_a_worker_is_started_ahead_only_for_a_version_that_needs_one_for_certain(
    setting: Setting, kind: str, unbounded: str, earlier: Placement | None, expected: bool
) -> None:
    assert needs_worker(setting, kind, ["cpu"], unbounded, earlier) is expected
