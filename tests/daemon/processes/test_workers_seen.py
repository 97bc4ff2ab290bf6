"""Workers as an operator sees them: real daemons whose workers are killed, and what every page and command says of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pillion
from pilliond.limits import WORKER_LOSSES_MAX
from tests.conftest import StartDaemon
from tests.daemon.support.policies.shadow import publish_times, times
from tests.harness import START_S_MAX, Daemon, wait_until

POLICY = "scaling"
PATH = f"/v1/policies/{POLICY}"
OBSERVATION = np.array([0.5, -1.5], np.float32)
IN_WORKERS = {"engine__placement": "worker"}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Versions 1.0.0 to 1.2.0 of a policy; version 1.n.0 multiplies by n + 2."""
    for minor in range(3):
        publish_times(tmp_path / "store", POLICY, f"1.{minor}.0", minor + 2)
    return tmp_path / "store"


@pytest.fixture
def daemon(store: Path, start_daemon: StartDaemon) -> Daemon:
    """Serves version 1.0.0 in a worker."""
    return start_daemon(policy=f"{POLICY}@1.0.0", store=store, settings=IN_WORKERS)


def version_of(daemon: Daemon, version: str = "1.0.0") -> dict[str, Any]:
    """What `/health` says of a loaded version."""
    (found,) = [each for each in daemon.health()["policies"][0]["versions"] if each["version"] == version]
    return dict(found)


def worker_of(daemon: Daemon, version: str = "1.0.0") -> dict[str, Any]:
    return dict(version_of(daemon, version)["worker"])


def states_of(daemon: Daemon, version: str) -> dict[str, float]:
    """The samples of `pillion_worker_state`."""
    states = ("loading", "ready", "lost", "out")
    return {state: daemon.metric("pillion_worker_state", version=version, state=state) for state in states}


def state_of(daemon: Daemon) -> dict[str, Any]:
    return daemon.ask("GET", PATH)[1]


def has_rolled_back(daemon: Daemon) -> bool:
    state = state_of(daemon)
    return (state["stable"], state["operation"]["kind"], state["operation"]["outcome"]) == ("1.0.0", "rollback", "done")


def act(daemon: Daemon) -> list[float]:
    with pillion.connect(daemon.address) as session, session.begin(seed=1) as episode:
        action: list[float] = episode.act(OBSERVATION).tolist()
        return action


def switch(daemon: Daemon, version: str) -> dict[str, Any]:
    return daemon.operation(daemon.ask("POST", f"{PATH}/switch", {"version": version}))


def kill_until_out(daemon: Daemon, version: str) -> None:
    """Kills every worker of a version, until no other is started. Waits for the first one."""
    until_s = time.monotonic() + START_S_MAX
    killed: set[int] = set()
    while (worker := worker_of(daemon, version))["state"] != "out" or not killed:
        assert time.monotonic() < until_s, worker
        if worker["pid"] is not None and worker["pid"] not in killed:
            killed.add(worker["pid"])
            os.kill(worker["pid"], signal.SIGKILL)
        time.sleep(0.01)
    assert len(killed) == WORKER_LOSSES_MAX


def pillion_command(daemon: Daemon, *words: str) -> str:
    command = [sys.executable, "-m", "pillion", *words, "--admin", daemon.admin]
    return subprocess.run(command, capture_output=True, text=True, timeout=START_S_MAX, check=True).stdout


def records(daemon: Daemon) -> Iterator[dict[str, Any]]:
    yield from daemon.ask("GET", f"/v1/audit?policy={POLICY}")[1]["records"]


def test_every_page_says_where_a_version_runs_and_why(daemon: Daemon) -> None:
    version, worker = version_of(daemon), worker_of(daemon)
    placed = {"placement": "worker", "placement_reason": "engine.placement is worker"}
    assert placed.items() <= version.items()
    assert placed.items() <= json.loads(daemon.get("/info")[1])["policies"][0].items()
    (resident,) = state_of(daemon)["resident"]
    assert placed.items() <= resident.items()
    assert (worker["state"], worker["reason"], worker["restarts"], worker["depth"]) == ("ready", "", 0, 1)
    assert worker["memory"] in ("pinned", "locked", "pageable")
    assert worker["python"].startswith("3.")
    assert worker["network"] in ("none", "host")
    assert worker["resident_bytes"] > 0
    assert {**resident["worker"], "resident_bytes": 0} == {**worker, "resident_bytes": 0}
    ready = daemon.events("ready")[0]
    assert {**placed, "worker_pid": worker["pid"], "memory": worker["memory"]}.items() <= ready.items()
    assert daemon.events("worker_ready")[0]["version"] == f"{POLICY}@1.0.0"
    assert f"1.0.0 worker: ready, pid {worker['pid']}" in pillion_command(daemon, "status")


def test_an_inline_version_has_no_worker(store: Path, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(policy=f"{POLICY}@1.0.0", store=store, settings={"engine__placement": "inline"})
    assert version_of(daemon)["worker"] is None
    assert states_of(daemon, "1.0.0") == dict.fromkeys(("loading", "ready", "lost", "out"), 0.0)
    assert daemon.events("worker_ready") == []


def test_a_killed_worker_is_replaced_and_counted(daemon: Daemon) -> None:
    before = worker_of(daemon)
    seen = {before["state"]}
    os.kill(before["pid"], signal.SIGKILL)
    until_s = time.monotonic() + START_S_MAX
    while (worker := worker_of(daemon))["state"] != "ready" or worker["pid"] == before["pid"]:
        assert time.monotonic() < until_s, worker
        seen.add(worker["state"])
    assert seen & {"lost", "loading"}
    assert (worker["restarts"], worker["reason"]) == (1, "its worker was killed by SIGKILL")
    assert daemon.metric("pillion_worker_restarts_total", policy=POLICY, version="1.0.0") == 1
    assert daemon.metric("pillion_worker_losses_total", policy=POLICY, cause="ended") == 1
    assert daemon.metric("pillion_worker_losses_total") == 1
    assert states_of(daemon, "1.0.0") == {"loading": 0, "ready": 1, "lost": 0, "out": 0}
    (lost,) = daemon.events("worker_lost")
    assert (lost["version"], lost["cause"]) == (f"{POLICY}@1.0.0", "ended")
    assert act(daemon) == times(OBSERVATION, 2)


def test_a_stable_version_that_is_out_makes_way_for_the_one_before_it(daemon: Daemon) -> None:
    assert switch(daemon, "1.1.0")["outcome"] == "done"
    kill_until_out(daemon, "1.1.0")
    wait_until(lambda: has_rolled_back(daemon))
    assert act(daemon) == times(OBSERVATION, 2)
    worker = worker_of(daemon, "1.1.0")
    assert (worker["state"], worker["pid"], worker["reason"]) == ("out", None, "its worker was killed by SIGKILL")
    assert states_of(daemon, "1.1.0")["out"] == 1
    (out,) = daemon.events("version_out")
    assert (out["version"], out["reason"]) == (f"{POLICY}@1.1.0", "its worker was killed by SIGKILL")
    assert [each["fault"] for each in daemon.events("auto_rollback")] == ["engine_out"]
    assert daemon.metric("pillion_auto_rollbacks_total", policy=POLICY, reason="engine_out") == 1
    (rolled,) = [record for record in records(daemon) if record["by"] == "pilliond"]
    assert (rolled["version"], rolled["was"]) == ("1.0.0", "1.1.0")
    assert rolled["reason"] == "automatic rollback: its worker was killed by SIGKILL"
    assert "1.1.0 is out: its worker was killed by SIGKILL" in pillion_command(daemon, "status")
    assert "worker, out" in pillion_command(daemon, "versions")


def test_a_version_that_is_out_is_tried_again_when_somebody_asks_for_it(daemon: Daemon) -> None:
    assert switch(daemon, "1.1.0")["outcome"] == "done"
    kill_until_out(daemon, "1.1.0")
    wait_until(lambda: has_rolled_back(daemon))
    failing = daemon.ask("POST", f"{PATH}/switch", {"version": "1.1.0"})
    kill_until_out(daemon, "1.1.0")
    failed = daemon.operation(failing)
    assert (failed["outcome"], failed["error"]) == ("failed", "it is out again: its worker was killed by SIGKILL")
    assert act(daemon) == times(OBSERVATION, 2)
    assert switch(daemon, "1.1.0")["outcome"] == "done"
    assert worker_of(daemon, "1.1.0")["state"] == "ready"
    assert act(daemon) == times(OBSERVATION, 3)


def test_a_stable_version_without_another_stays_and_is_tried_again_by_staging_it(daemon: Daemon) -> None:
    ready = f"/v2/models/{POLICY}/ready"
    assert daemon.get(ready)[0] == 200
    kill_until_out(daemon, "1.0.0")
    assert (daemon.get(ready)[0], daemon.get("/v2/health/ready")[0]) == (503, 200)
    with pillion.connect(daemon.address) as session, session.begin(seed=1) as episode:
        with pytest.raises(pillion.EngineOutError):
            episode.act(OBSERVATION)
        staged = daemon.operation(daemon.ask("POST", f"{PATH}/stage", {"version": "1.0.0"}))
        assert staged["outcome"] == "done"
        assert episode.act(OBSERVATION).tolist() == times(OBSERVATION, 2)
    assert daemon.get(ready)[0] == 200


def test_with_the_setting_off_a_version_that_is_out_stays(store: Path, start_daemon: StartDaemon) -> None:
    settings = {**IN_WORKERS, "auto_rollback__engine_out": "false"}
    daemon = start_daemon(policy=f"{POLICY}@1.0.0", store=store, settings=settings)
    assert switch(daemon, "1.1.0")["outcome"] == "done"
    kill_until_out(daemon, "1.1.0")
    rolled = daemon.operation(daemon.ask("POST", f"{PATH}/rollback", {"reason": "by hand"}))
    assert rolled["outcome"] == "done"
    assert (state_of(daemon)["stable"], daemon.events("auto_rollback")) == ("1.0.0", [])


def test_an_arm_that_is_out_ends(daemon: Daemon) -> None:
    arms = [{"name": "canary", "version": "1.2.0", "share": 1.0}]
    assert daemon.operation(daemon.ask("PUT", f"{PATH}/route", {"arms": arms}))["outcome"] == "done"
    assert act(daemon) == times(OBSERVATION, 4)
    # The worker that ran this act is lost, too; only those after it complete nothing.
    worker = worker_of(daemon, "1.2.0")
    os.kill(worker["pid"], signal.SIGKILL)
    wait_until(lambda: worker_of(daemon, "1.2.0")["pid"] not in (None, worker["pid"]))
    kill_until_out(daemon, "1.2.0")
    wait_until(lambda: state_of(daemon)["route"] == [])
    assert (state_of(daemon)["stable"], act(daemon)) == ("1.0.0", times(OBSERVATION, 2))
    assert daemon.metric("pillion_auto_rollbacks_total", policy=POLICY, reason="engine_out") == 1


@pytest.mark.parametrize("placement", ["inline", "worker"])
def test_service_times_are_there_before_the_first_act(store: Path, start_daemon: StartDaemon, placement: str) -> None:
    settings = {"engine__placement": placement, "limits__rows_max": 3}
    daemon = start_daemon(policy=f"{POLICY}@1.0.0", store=store, settings=settings)
    name, of_version = "pillion_service_time_seconds", {"policy": POLICY, "version": "1.0.0"}
    for rows in ("1", "2", "3"):
        fast, slow = (daemon.metric(name, **of_version, rows=rows, bound=bound) for bound in ("fast", "slow"))
        assert 0 < fast <= slow
    assert daemon.metric(name, **of_version, rows="4") == 0


def test_a_version_that_was_staged_knows_its_service_times(store: Path, start_daemon: StartDaemon) -> None:
    daemon = start_daemon(policy=f"{POLICY}@1.0.0", store=store, settings={"engine__placement": "inline"})
    staged = daemon.operation(daemon.ask("POST", f"{PATH}/stage", {"version": "1.1.0"}))
    for each in staged["service_us"]:
        slow_s = daemon.metric("pillion_service_time_seconds", version="1.1.0", rows=str(each["rows"]), bound="slow")
        assert slow_s == pytest.approx(each["p99_us"] / 1e6, abs=2e-9)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("engine__depth", "0", "engine: depth: expected 1 to 4, got 0"),
        ("engine__spin_us", "-1", "engine: spin_us: expected 0 to 1000000, got -1"),
        ("engine__worker_cpus", "a", "engine: cpus: expected CPUs such as 3 or 2,4-6, got 'a'"),
        ("engine__worker_memory_mb_max", "8", "engine: worker_memory_mb_max: expected at least 256, got 8"),
        ("engine__hang_ms_min", "1", "engine: hang_ms_min: expected 10 to 600000, got 1"),
        ("engine__placement", "gpu", "engine.placement: "),
        ("auto_rollback__engine_out", "perhaps", "auto_rollback.engine_out: "),
    ],
)
def test_a_wrong_setting_ends_the_start_with_one_line(store: Path, setting: str, value: str, message: str) -> None:
    command = [sys.executable, "-m", "pilliond", "--store", str(store), "--policy", f"{POLICY}@1.0.0"]
    environment = {**os.environ, f"PILLION_{setting.upper()}": value}
    result = subprocess.run(command, capture_output=True, text=True, timeout=START_S_MAX, check=False, env=environment)
    assert (result.returncode, len(result.stderr.splitlines())) == (os.EX_CONFIG, 1), result
    assert message in result.stderr
