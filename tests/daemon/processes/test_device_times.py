"""The times of a device as users see them: real daemons whose workers write them, clients over each carrier, and metrics."""

from __future__ import annotations

import os
import signal
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import pillion
from pillion.outcome import Outcome
from pillion_protocol.action_steps import DeviceTimes
from tests.conftest import StartDaemon
from tests.daemon.support.policies.shadow import publish_times
from tests.harness import Daemon, wait_until
from tests.worker.support.on_device import REMEMBERED, make_interpreter, times_of

WIDTHS = {"scaling": 2, "wide": 5_000}
"""The observation of `wide` travels through a slot on the lane."""
PHASES = ("copy_in", "compute", "copy_out")
METRIC = "pillion_device_duration_seconds"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("device")


@pytest.fixture(scope="module")
def daemon(folder: Path, short_path: Path, module_daemon: StartDaemon) -> Daemon:
    """Serves `scaling` and `wide` in workers on `cuda:0`."""
    for name, width in WIDTHS.items():
        publish_times(folder / "store", name, "1.0.0", 2.0, width)
    settings = {"engine__placement": "worker", "engine__python": make_interpreter(folder), "limits__rows_max": 4}
    listen = [f"{carrier}://{short_path}/device-{carrier}.sock" for carrier in ("lane", "ipc")]
    return module_daemon("--policy", "wide", policy="scaling", store=folder / "store", settings=settings, listen=listen)


def times_said(outcome: Outcome) -> DeviceTimes:
    timings = outcome.timings
    return DeviceTimes(timings.copy_in_ns, timings.compute_ns, timings.copy_out_ns)


def number_of(times: DeviceTimes) -> int:
    """Returns the number of the batch that had these times, but for whole `REMEMBERED`."""
    return next(number for number in range(REMEMBERED) if times_of(number) == times)


def acts(daemon: Daemon, carrier: str, policy: str, count: int, budget_us: int = 0) -> list[Outcome]:
    """Acts alone in one episode, and returns what each reply said."""
    (address,) = [address for address in daemon.addresses if address.startswith(carrier)]
    outcomes = []
    with pillion.connect(address, policy=policy) as session, session.begin(seed=1) as episode:
        for number in range(count):
            observation = np.full(WIDTHS[policy], number, np.float32)
            assert episode.act(observation, budget_us=budget_us).tolist() == (2 * observation).tolist()
            outcomes.append(episode.last)
    return outcomes


@pytest.mark.parametrize(("carrier", "policy"), [("lane", "scaling"), ("lane", "wide"), ("ipc", "scaling")])
def test_each_reply_says_what_the_device_took_for_its_own_batch(daemon: Daemon, carrier: str, policy: str) -> None:
    before = [daemon.metric(f"{METRIC}_count", policy=policy, phase=phase) for phase in PHASES]
    outcomes = acts(daemon, carrier, policy, 6)
    said = [times_said(outcome) for outcome in outcomes]
    for earlier, later in pairwise(map(number_of, said)):
        assert later == (earlier + 1) % REMEMBERED
    assert all(sum(times) <= outcome.timings.engine_ns for times, outcome in zip(said, outcomes, strict=True))
    assert all(outcome.outputs_in_slot == (policy == "wide") for outcome in outcomes)
    after = [daemon.metric(f"{METRIC}_count", policy=policy, phase=phase) for phase in PHASES]
    assert after == [count + 6 for count in before]


def test_metrics_have_each_phase_of_a_version_on_a_device(daemon: Daemon) -> None:
    before = [daemon.metric(f"{METRIC}_sum", version="1.0.0", phase=phase) for phase in PHASES]
    said = [times_said(outcome) for outcome in acts(daemon, "ipc", "scaling", 3)]
    after = [daemon.metric(f"{METRIC}_sum", version="1.0.0", phase=phase) for phase in PHASES]
    sums_ns = [sum(column) for column in zip(*said, strict=True)]
    assert [round((new - old) * 1e9) for new, old in zip(after, before, strict=True)] == sums_ns
    assert daemon.metric("pillion_engine_info", device="cuda:0") == 2
    assert (
        f'{METRIC}_bucket{{le="1e-06",phase="copy_in",policy="wide",version="mixed"}} 0.0' in daemon.get("/metrics")[1]
    )


def test_a_worker_that_replaces_one_on_another_device_says_nothing_of_the_old_one(daemon: Daemon, folder: Path) -> None:
    """Its episodes go on. On the CPU this worker writes the same cells: nobody reads them."""
    (folder / "device").write_text("cpu")
    (found,) = [each for each in daemon.health()["policies"] if each["policy"] == "scaling"]
    with pillion.connect(daemon.address, policy="scaling") as session, session.begin(seed=1) as episode:
        assert episode.act(np.ones(2, np.float32)).tolist() == [2.0, 2.0]
        assert any(times_said(episode.last))
        os.kill(found["versions"][0]["worker"]["pid"], signal.SIGKILL)
        wait_until(lambda: daemon.metric("pillion_engine_info", policy="scaling", device="cpu") == 1)
        for number in range(3):
            assert episode.act(np.full(2, number, np.float32)).tolist() == [2.0 * number] * 2
            assert times_said(episode.last) == DeviceTimes(0, 0, 0)
    assert f'{METRIC}_count{{phase="copy_in",policy="scaling"' not in daemon.get("/metrics")[1]
    assert daemon.metric(f"{METRIC}_count", policy="wide", phase="copy_in") > 0
