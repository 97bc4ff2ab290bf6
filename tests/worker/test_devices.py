"""An engine computes where it was asked to; `auto` is the faster device, and a fallback says why it is one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

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


def chosen(device: str, takes_s: dict[str, float], missing: str = "") -> dict[str, Any]:
    """What the chosen engine says of itself, with these devices."""
    request = LoadRequest(
        "torch", [Tensor("x", "float32", [1])], [Tensor("action", "float32", [1])], [], [], ROWS_MAX, device=device
    )

    def make(where: str, fallback: str) -> Engine:
        if takes_s[where] < 0:
            raise EngineError("it does not fit")
        return TimedEngine(where, fallback, takes_s)

    return choose(request, lambda _: missing, make).describe()


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
