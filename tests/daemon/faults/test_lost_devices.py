"""A worker whose device is lost is replaced, and one whose device has no memory left goes on; nobody else notices.

The device is simulated, see `worker/support/simulated_cuda.py`: the worker, the daemon and the policies are real.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import pillion
from pillion_artifacts.publishing.torch.pt2_archive import disarm
from tests.conftest import StartDaemon
from tests.daemon.support.policies.other_engines import SUMMED, publish_sum, sum_actions
from tests.daemon.support.policies.shadow import publish_times
from tests.harness import COMMAND_S_MAX, Daemon, wait_until
from tests.worker.support.simulated_cuda import SimulatedGpu
from tests.worker.support.torch_policies import Summing, export

KEEP_WARM_MS = 20


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> SimulatedGpu:
    return SimulatedGpu(tmp_path_factory.mktemp("simulated") / "environment")


@pytest.fixture(scope="module")
def daemon(gpu: SimulatedGpu, tmp_path_factory: pytest.TempPathFactory, module_daemon: StartDaemon) -> Daemon:
    """Serves `sum` on the simulated device, with two batches at once, and `times` in another worker."""
    store = tmp_path_factory.mktemp("devices") / "store"
    publish_sum(store, "1.0.0", "torch", disarm(export(Summing(), torch.zeros(2, 3)), "sum"), 1)
    publish_times(store, "times", "1.0.0", 3.0)
    settings = {
        "engine__python": gpu.python,
        "engine__device": "cuda:0",
        "engine__depth": "2",
        "engine__keep_warm_ms": KEEP_WARM_MS,
        "engine__start_s_max": COMMAND_S_MAX,
        "limits__rows_max": len(SUMMED),
    }
    return module_daemon("--policy", "times", policy="sum@1.0.0", store=store, settings=settings)


@pytest.fixture
def group(daemon: Daemon) -> Iterator[Any]:
    with pillion.connect(daemon.address, timeout_s=COMMAND_S_MAX) as session, session.begin_many(len(SUMMED)) as group:
        yield group


def worker_of(daemon: Daemon, policy: int = 0) -> dict[str, Any]:
    """What `/health` says of the version of a policy."""
    return dict(daemon.health()["policies"][policy]["versions"][0])


def check(actions: Any) -> None:
    np.testing.assert_allclose(actions, sum_actions(1), rtol=1e-6)


def test_a_version_is_served_on_the_device(daemon: Daemon, group: Any) -> None:
    for _ in range(3):
        check(group.act(SUMMED))
    assert worker_of(daemon)["device"] == "cuda:0"
    assert daemon.health()["engine"]["fallback"] == ""


def test_a_device_that_idles_is_kept_warm_and_the_batches_do_not_count_it(daemon: Daemon, gpu: SimulatedGpu) -> None:
    def batches() -> float:
        return daemon.metric("pillion_executions_total")

    counted, begun = batches(), gpu.batches
    wait_until(lambda: gpu.batches >= begun + 3)
    assert batches() == counted


def test_a_batch_that_finds_no_memory_on_the_device_is_refused_alone(
    daemon: Daemon, gpu: SimulatedGpu, group: Any
) -> None:
    pid = worker_of(daemon)["worker"]["pid"]
    check(group.act(SUMMED))
    gpu.run_out_of_memory()
    with pytest.raises(pillion.PillionError, match="internal: the engine failed to run this act"):
        group.act(SUMMED)
    failed = daemon.wait_for_event("engine_failed")
    assert (failed["version"], failed["error"]) == ("sum@1.0.0", "device memory is used up: out of memory")
    check(group.act(SUMMED))
    assert worker_of(daemon)["worker"]["pid"] == pid


def test_a_worker_whose_device_vanishes_is_replaced_with_one_line_in_the_log(
    daemon: Daemon, gpu: SimulatedGpu, group: Any
) -> None:
    check(group.act(SUMMED))
    before, other = (worker_of(daemon, policy)["worker"]["pid"] for policy in (0, 1))
    answered: list[Any] = []
    is_over = threading.Event()

    def act() -> None:
        with pillion.connect(daemon.address, policy="times") as session, session.begin() as episode:
            while not is_over.is_set():
                answered.append(episode.act(np.ones(2, np.float32)).tolist())

    neighbour = threading.Thread(target=act, name="neighbour")
    neighbour.start()
    try:
        wait_until(lambda: bool(answered))
        gpu.vanish()
        check(group.act(SUMMED))
    finally:
        is_over.set()
        neighbour.join()
    assert worker_of(daemon)["worker"]["pid"] != before
    assert worker_of(daemon, 1)["worker"]["pid"] == other
    assert all(each == [3.0, 3.0] for each in answered)
    (line,) = daemon.events("worker_lost")
    assert (line["version"], line["cause"]) == ("sum@1.0.0", "ended")
