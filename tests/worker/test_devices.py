"""An engine computes where it was asked to; `auto` is the faster device, and a fallback says why it is one."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from pillion_worker.device_memory.meter import DeviceMeter
from pillion_worker.devices import choose, cuda_index
from pillion_worker.engines.interface import Engine
from pillion_worker.errors import EngineError
from pillion_worker.tensors import LoadRequest, Tensor, TensorMemory

ROWS_MAX = 4


class TimedEngine:
    """An engine that takes as long as its device."""

    kind = "timed"
    keeps_states = False

    def __init__(self, device: str, fallback: str, takes_s: dict[str, float]) -> None:
        self.outputs = [Tensor("action", "float32", [1])]
        self.described = {"device": device, "fallback": fallback}
        self._takes_s = takes_s[device]

    def bind(self, memory: TensorMemory) -> list[Callable[[], None]]:
        return [lambda: time.sleep(self._takes_s)] * (ROWS_MAX + 1)

    def register(self, arena: memoryview) -> bool:
        return False

    def idle_run(self) -> Callable[[], None] | None:
        return None

    def describe(self) -> dict[str, Any]:
        return self.described


class Meter(DeviceMeter):
    """Notes what it is asked for, and which engines there are then."""

    def __init__(self) -> None:
        super().__init__()
        self.engines = weakref.WeakSet[TimedEngine]()
        self.asked: list[tuple[str, list[str]]] = []

    def begin_here(self, index: int) -> None:
        self._note(f"begin cuda:{index}")

    def release(self) -> None:
        self._note("release")

    def _note(self, what: str) -> None:
        self.asked.append((what, sorted(engine.described["device"] for engine in self.engines)))


def chosen(
    device: str, takes_s: dict[str, float], missing: str = "", meter: Meter | None = None, **computes: str
) -> dict[str, Any]:
    """What the chosen engine says of itself, with these devices."""
    request = LoadRequest(
        "torch", [Tensor("x", "float32", [1])], [Tensor("action", "float32", [1])], [], [], ROWS_MAX, device=device
    )

    def make(where: str, fallback: str) -> Engine:
        if takes_s[where] < 0:
            raise EngineError("it does not fit")
        engine = TimedEngine(where, fallback, takes_s)
        if meter is not None:
            meter.engines.add(engine)
        if takes_s.get("fails") and where != "cpu":
            raise EngineError("it does not fit")
        engine.described["device"] = computes.get(where, where)
        return engine

    return choose(request, lambda _: missing, make, meter).describe()


@pytest.mark.parametrize(
    ("device", "takes_s", "expected"),
    [
        ("cpu", {"cpu": 0.0}, "cpu"),
        ("cuda:1", {"cuda:1": 0.0}, "cuda:1"),
        ("auto", {"cpu": 0.001, "cuda:0": 0.0}, "cuda:0"),
        ("auto", {"cpu": 0.0, "cuda:0": 0.001}, "cpu"),
    ],
)
def test_the_device_is_the_one_that_was_asked_for_or_the_faster_one(
    device: str, takes_s: dict[str, float], expected: str
) -> None:
    assert chosen(device, takes_s) == {"device": expected, "fallback": ""}


def test_a_request_that_cannot_be_met_says_why() -> None:
    assert chosen("cuda:1", {"cpu": 0.0}, missing="there is none") == {
        "device": "cpu",
        "fallback": "cuda:1 was asked for: there is none",
    }
    assert chosen("auto", {"cpu": 0.0}, missing="there is none") == {"device": "cpu", "fallback": ""}
    assert chosen("auto", {"cpu": 0.0, "cuda:0": -1.0}) == {
        "device": "cpu",
        "fallback": "cuda:0 fails: it does not fit",
    }


def test_a_device_that_was_asked_for_and_fails_is_no_fallback() -> None:
    with pytest.raises(EngineError, match="it does not fit"):
        chosen("cuda:0", {"cuda:0": -1.0})


def test_a_device_has_a_number() -> None:
    assert [cuda_index(device) for device in ("auto", "cuda", "cuda:0", "cuda:12")] == [0, 0, 0, 12]
    for device in ("gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA:0"):
        with pytest.raises(EngineError, match="expected auto, cpu or cuda:N"):
            cuda_index(device)


BEGUN: tuple[str, list[str]] = ("begin cuda:0", [])


@pytest.mark.parametrize(
    ("device", "takes_s", "missing", "asked"),
    [
        ("cpu", {"cpu": 0.0}, "", []),
        ("auto", {"cpu": 0.0}, "there is none", []),
        ("cuda:0", {"cuda:0": 0.0}, "", [BEGUN]),
        ("auto", {"cpu": 0.001, "cuda:0": 0.0}, "", [BEGUN]),
        ("auto", {"cpu": 0.0, "cuda:0": 0.001}, "", [BEGUN, ("release", ["cpu"])]),
        ("auto", {"cpu": 0.0, "cuda:0": 0.0, "fails": 1.0}, "", [BEGUN, ("release", ["cpu"])]),
    ],
)
def test_a_device_is_measured_from_before_it_is_tried_and_nothing_of_a_try_in_vain_is_left_there(
    device: str, takes_s: dict[str, float], missing: str, asked: list[tuple[str, list[str]]]
) -> None:
    meter = Meter()
    chosen(device, takes_s, missing, meter)
    assert meter.asked == asked


def test_a_device_that_the_engine_does_not_compute_on_after_all_is_released() -> None:
    meter = Meter()
    assert chosen("cuda:0", {"cuda:0": 0.0}, "", meter, **{"cuda:0": "cpu"})["device"] == "cpu"
    assert [what for what, _ in meter.asked] == ["begin cuda:0", "release"]
