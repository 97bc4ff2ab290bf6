"""Python policies in workers: staged, switched, shadowed, rolled back and killed, by real daemons, in an environment of their own."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import pillion
from tests.conftest import StartDaemon
from tests.daemon.support.policies.other_engines import (
    OBSERVATIONS,
    perceptron_actions,
    publish_perceptron,
    publish_taking,
)
from tests.daemon.support.started import refused_start
from tests.daemon.support.worker_faults import is_worker
from tests.harness import Daemon, wait_until
from tests.worker.support.installed import EXAMPLE, TAKING, make_environment
from tests.worker.support.stub_gpu import StubGpu

PATH = "/v1/policies/perceptron"
ALLOWED = {"trust__code": f"something-else,{EXAMPLE}"}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with the packages of `perceptron` and `taking`."""
    return make_environment(tmp_path_factory.mktemp("environment"), EXAMPLE, TAKING)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Version 1.n.0 of `perceptron` has weights of seed n."""
    for seed in range(2):
        publish_perceptron(tmp_path / "store", f"1.{seed}.0", seed)
    return tmp_path / "store"


@pytest.fixture
def daemon(store: Path, python: str, start_daemon: StartDaemon) -> Daemon:
    """Serves version 1.0.0."""
    return start_daemon(policy="perceptron@1.0.0", store=store, settings={**ALLOWED, "engine__python": python})


def act(daemon: Daemon) -> Any:
    """Acts on the observations of the golden pairs, as one group."""
    with pillion.connect(daemon.address) as session, session.begin_many(len(OBSERVATIONS)) as group:
        return group.act(OBSERVATIONS)


def answers_as(daemon: Daemon, seed: int) -> bool:
    return bool(np.allclose(act(daemon), perceptron_actions(seed), atol=1e-5))


def version_of(daemon: Daemon, version: str = "1.0.0") -> dict[str, Any]:
    """What `/health` says of a loaded version."""
    (found,) = [each for each in daemon.health()["policies"][0]["versions"] if each["version"] == version]
    return dict(found)


def switch(daemon: Daemon, version: str) -> dict[str, Any]:
    return daemon.operation(daemon.ask("POST", f"{PATH}/switch", {"version": version}))


def test_it_is_served_in_the_interpreter_that_the_settings_name(daemon: Daemon, python: str) -> None:
    assert answers_as(daemon, 0)
    version = version_of(daemon)
    assert (version["placement"], version["placement_reason"]) == ("worker", "it is a Python policy")
    pid = version["worker"]["pid"]
    command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    assert command[0] == python
    assert command[1].endswith("/pillion_worker/bootstrap.py")
    engine = daemon.health()["engine"]
    assert (engine["kind"], engine["version"], engine["threads"]) == ("python", "1.2.0", 1)
    (ready,) = daemon.events("ready")
    assert ready["device"] == version["device"] == engine["device"]
    assert engine["device"] in ("cpu", "auto")
    assert daemon.metric("pillion_engine_info", version="1.0.0", engine="python", placement="worker", fallback="") == 1


def test_it_is_staged_switched_to_and_rolled_back(daemon: Daemon) -> None:
    operation = switch(daemon, "1.1.0")
    assert operation["outcome"] == "done", operation
    assert (operation["placement"], operation["placement_reason"]) == ("worker", "it is a Python policy")
    assert operation["certificate"]["source"] == "golden pairs"
    assert [each["rows"] for each in operation["service_us"]] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert all(0 < each["p50_us"] <= each["p99_us"] for each in operation["service_us"])
    assert answers_as(daemon, 1)
    assert daemon.operation(daemon.ask("POST", f"{PATH}/rollback", {"reason": "a test"}))["outcome"] == "done"
    assert answers_as(daemon, 0)


def test_nothing_of_a_staging_is_left(daemon: Daemon) -> None:
    staged = daemon.operation(daemon.ask("POST", f"{PATH}/stage", {"version": "1.1.0"}))
    assert staged["outcome"] == "done"
    workers = {version_of(daemon, version)["worker"]["pid"] for version in ("1.0.0", "1.1.0")}
    children = {
        int(pid) for tasks in Path(f"/proc/{daemon.pid}/task").glob("*/children") for pid in tasks.read_text().split()
    }
    assert children == {daemon.serving_pid, *workers}


def test_one_that_does_not_answer_its_golden_pairs_is_refused(daemon: Daemon, store: Path) -> None:
    publish_perceptron(store, "1.2.0", 2, golden_seed=3)
    operation = switch(daemon, "1.2.0")
    assert operation["outcome"] == "failed"
    assert operation["error"].startswith("output 'action', row 0, element 0: expected")
    assert answers_as(daemon, 0)


@pytest.mark.parametrize(
    ("publication", "why"),
    [
        ({"requires": ">=2"}, "its package 'pillion-example-policy': expected version >=2, got 1.2.0"),
        ({"factory": "nothing"}, "its package 'pillion-example-policy': pillion_example_policy has no 'nothing'"),
        (
            {"factory": "np.f2py.subprocess.run"},
            "its package 'pillion-example-policy' does not define pillion_example_policy:np.f2py.subprocess.run, subprocess does",
        ),
    ],
)
def test_one_whose_package_is_not_there_as_its_card_says_is_refused(
    daemon: Daemon, store: Path, publication: dict[str, str], why: str
) -> None:
    publish_perceptron(store, "1.2.0", 2, **publication)  # type: ignore[arg-type] # texts alone
    operation = switch(daemon, "1.2.0")
    assert (operation["outcome"], operation["error"]) == ("failed", why)
    assert answers_as(daemon, 0)


def test_it_shadows_the_stable_version(daemon: Daemon) -> None:
    body = {"arms": [], "shadow": {"version": "1.1.0", "share": 1.0}}
    operation = daemon.operation(daemon.ask("PUT", f"{PATH}/route", body))
    assert operation["outcome"] == "done", operation
    assert answers_as(daemon, 0)

    def report() -> dict[str, Any]:
        return daemon.ask("GET", f"{PATH}/shadow")[1]

    wait_until(lambda: report()["rows"] == len(OBSERVATIONS))
    distance = np.linalg.norm(perceptron_actions(0) - perceptron_actions(1), axis=1)
    assert report()["agreed_rows"] == 0
    (output,) = report()["outputs"]
    assert output["distance_mean"] == pytest.approx(distance.mean(), rel=1e-4)
    (worker,) = shadow_workers(daemon)
    assert os.sched_getscheduler(worker) == os.SCHED_IDLE
    os.kill(worker, signal.SIGKILL)
    answers_as(daemon, 0)
    wait_until(lambda: report()["state"] == "ended")
    assert report()["end_reason"] == "its worker ended"
    assert answers_as(daemon, 0)


def shadow_workers(daemon: Daemon) -> list[int]:
    """The worker of the shadow process, without the fork that ends them with it."""
    return [child.pid for child in psutil.Process(daemon.health()["shadow"]["pid"]).children() if is_worker(child)]


def test_a_killed_worker_is_replaced(daemon: Daemon) -> None:
    before = version_of(daemon)["worker"]["pid"]
    with pillion.connect(daemon.address) as session, session.begin_many(len(OBSERVATIONS)) as group:
        expected = group.act(OBSERVATIONS)
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: version_of(daemon)["worker"]["pid"] not in (None, before))
        assert np.array_equal(group.act(OBSERVATIONS), expected)
    worker = version_of(daemon)["worker"]
    assert (worker["restarts"], worker["reason"]) == (1, "its worker was killed by SIGKILL")


def test_a_package_that_trust_code_does_not_name_is_refused_before_it_is_loaded(
    store: Path, python: str, tmp_path: Path, start_daemon: StartDaemon
) -> None:
    why = f"engine.distribution: expected a package that trust.code allows (none), got '{EXAMPLE}'"
    why += f': if you trust it, set trust.code = ["{EXAMPLE}"]'
    settings = {"engine__python": python}
    assert refused_start(store, "perceptron@1.0.0", settings) == (
        os.EX_DATAERR,
        f"pilliond: perceptron@v1.0.0: {why}",
    )
    assert refused_start(store, "perceptron@1.0.0", {**settings, "trust__code": "pillion"})[0] == os.EX_DATAERR


def test_it_never_runs_inline(store: Path, python: str) -> None:
    settings = {**ALLOWED, "engine__python": python, "engine__placement": "inline"}
    assert refused_start(store, "perceptron@1.0.0", settings) == (
        os.EX_DATAERR,
        "pilliond: perceptron@1.0.0: engine.placement is inline, and it is a Python policy: expected auto or worker",
    )


def test_a_device_that_is_not_there_is_told_and_refused_where_it_is_required(
    store: Path, python: str, start_daemon: StartDaemon
) -> None:
    settings = {**ALLOWED, "engine__python": python, "engine__device": "cuda:63"}
    daemon = start_daemon(policy="perceptron@1.0.0", store=store, settings=settings)
    assert answers_as(daemon, 0)
    version = version_of(daemon)
    assert (version["device"], version["fallback"]) == ("cpu", "there is no cuda:63")
    told = {"device": "cpu", "fallback": "there is no cuda:63"}
    assert told.items() <= daemon.events("ready")[0].items()
    assert told.items() <= daemon.events("worker_ready")[0].items()
    assert told.items() <= daemon.health()["engine"].items()
    assert told.items() <= daemon.ask("GET", PATH)[1]["resident"][0].items()
    assert told.items() <= daemon.ask("GET", "/info")[1].items()
    assert daemon.metric("pillion_engine_info", **told) == 1
    required = {**settings, "engine__device_required": "true"}
    assert refused_start(store, "perceptron@1.0.0", required) == (
        os.EX_DATAERR,
        "pilliond: perceptron@1.0.0: engine.device_required: expected cuda:63, got cpu (there is no cuda:63)",
    )


def test_one_that_takes_more_of_a_device_than_its_budget_is_refused_before_the_live_one_is_touched(
    tmp_path: Path, python: str, start_daemon: StartDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpu").mkdir()
    gpu = StubGpu(tmp_path / "gpu", monkeypatch)
    for version, taken_mb in (("1.0.0", 100), ("2.0.0", 500), ("3.0.0", 400)):
        publish_taking(tmp_path / "taking", version, elsewhere_mb_0=taken_mb)
    settings = {"trust__code": TAKING, "engine__python": python, "engine__device_memory_mb": 400}
    daemon = start_daemon(policy="taking@1.0.0", store=tmp_path / "taking", settings=settings)
    live = version_of(daemon)
    # A worker that serves makes no context to look: only staging measures.
    assert live["worker"]["device_memory_mb"] == 0
    assert gpu.contexts() == []
    gpu.set(elsewhere_mb_0=0)
    refused = daemon.operation(daemon.ask("POST", "/v1/policies/taking/switch", {"version": "2.0.0"}))
    assert (refused["outcome"], refused["error"]) == (
        "failed",
        "engine.device_memory_mb: expected at most 400, it took 500 MB of cuda:0",
    )
    assert version_of(daemon)["worker"]["pid"] == live["worker"]["pid"]
    with pillion.connect(daemon.address) as session, session.begin(seed=1) as episode:
        assert episode.act(np.ones(1, np.float32)) == 2
    gpu.set(elsewhere_mb_0=0)
    assert daemon.operation(daemon.ask("POST", "/v1/policies/taking/switch", {"version": "3.0.0"}))["outcome"] == "done"
    looked = gpu.contexts()
    assert [(what, device) for what, device, _ in looked] == [("made", 0)] * 4
    assert version_of(daemon, "3.0.0")["worker"]["device_memory_mb"] == 400
