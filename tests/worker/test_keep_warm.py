"""A device is kept warm while no batch comes, by nothing that a batch could notice."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from pillion_worker.doorbell import wait_for_rings
from pillion_worker.engines.torch import TorchEngine
from pillion_worker.errors import EngineError
from pillion_worker.memory import private_memory
from pillion_worker.runs.keep_warm import KeepWarm
from pillion_worker.worker import waiting
from tests.worker.support.pipelines import opened, request_for, scaling
from tests.worker.support.simulated_device import SimulatedDevice

EVERY_MS = 1


@pytest.fixture
def bell() -> Iterator[tuple[int, int]]:
    """The end that reads, and the one that writes."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_something_runs_while_nobody_rings(bell: tuple[int, int]) -> None:
    runs = []

    def run() -> None:
        runs.append(1)
        if len(runs) == 3:
            os.write(bell[1], b"\1\1")

    assert KeepWarm(run, EVERY_MS).wait_for_rings(bell[0]) == 2
    assert len(runs) == 3


def test_nothing_runs_where_a_ring_waits_already(bell: tuple[int, int]) -> None:
    os.write(bell[1], b"\1")
    assert KeepWarm(lambda: pytest.fail("it ran"), EVERY_MS).wait_for_rings(bell[0]) == 1


def test_a_run_that_fails_is_the_last_and_the_log_says_so(
    bell: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []

    def run() -> None:
        runs.append(1)
        os.write(bell[1], b"\1")
        raise EngineError("device memory is used up")

    warm = KeepWarm(run, EVERY_MS)
    assert warm.wait_for_rings(bell[0]) == 1
    ring = threading.Timer(20 * EVERY_MS / 1_000, os.write, (bell[1], b"\1"))
    ring.start()
    assert warm.wait_for_rings(bell[0]) == 1
    ring.join()
    assert len(runs) == 1
    assert capsys.readouterr().err == "the device is not kept warm any more: device memory is used up\n"


def test_it_runs_the_smallest_bucket_in_memory_of_its_own() -> None:
    device = SimulatedDevice()
    with opened(device):
        engine = TorchEngine(scaling().model, request_for(scaling()), "cuda:0")
        memory = private_memory(request_for(scaling()), engine.outputs)
        for array in [*memory.inputs, *memory.outputs.values()]:
            array.fill(7)
        runs = engine.bind(memory)
        idle = engine.idle_run()
        assert idle is not None
        device.operations.clear()
        runs[6]()
        of_batches = list(device.operations)
        idle()
        of_idling = device.operations[len(of_batches) :]
    assert len(of_idling) == 3
    assert not any(each.clashes(other.reads, other.writes) for each in of_idling for other in of_batches)
    assert of_idling[0].bytes_written * 6 == of_batches[0].bytes_written, "it is one row, and not six"
    assert all(np.all(array == 7) for array in memory.inputs)


def test_only_a_device_is_kept_warm_and_only_if_the_settings_ask() -> None:
    with opened(SimulatedDevice()):
        request = request_for(scaling())
        on_cpu, on_device = (TorchEngine(scaling().model, request, where) for where in ("cpu", "cuda:0"))
        assert waiting(on_cpu, 50) is wait_for_rings
        assert waiting(on_device, 0) is wait_for_rings
        assert waiting(on_device, 50) is not wait_for_rings
