"""Versions on several devices: real daemons with two workers on the CPU, which are stopped, killed and counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pillion
from pillion_protocol import Action, Ping, Pong, encode
from pilliond.limits import WORKER_LOSSES_MAX
from tests.conftest import StartDaemon
from tests.daemon.support.policies.hostile import publish_hostile, publish_lstm, row
from tests.daemon.support.raw_lane import RawEpisodeGroup, RawLane
from tests.daemon.support.worker_faults import OK, BackgroundActor, is_stopped, send, worker_pids
from tests.harness import START_S_MAX, Daemon, wait_until

HOSTILE = "/v1/policies/hostile"
TWO = {"engine__device": "cpu,cpu"}
SLOWLY_JUDGED = {"engine__hang_ms_min": 60_000, "limits__rows_max": 1}
"""Workers are stopped for longer than a batch takes, and are not to be taken for hung. No two acts share a batch."""
QUICKLY_JUDGED = {"engine__hang_ms_min": 150}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("replicas") / "store"
    publish_hostile(store)
    publish_hostile(store, "1.1.0")
    publish_lstm(store)
    return store


@pytest.fixture(scope="module")
def patient(store: Path, short_path: Path, module_daemon: StartDaemon) -> Daemon:
    """A daemon with two workers, which may be stopped."""
    listen = [f"lane://{short_path}/patient.sock"]
    return module_daemon(policy="hostile@1.0.0", store=store, listen=listen, settings={**TWO, **SLOWLY_JUDGED})


@pytest.fixture(scope="module")
def strict(store: Path, short_path: Path, module_daemon: StartDaemon) -> Daemon:
    """A daemon with two workers, which are soon taken for hung."""
    listen = [f"lane://{short_path}/strict.sock"]
    return module_daemon(policy="hostile@1.0.0", store=store, listen=listen, settings={**TWO, **QUICKLY_JUDGED})


def version_of(daemon: Daemon, version: str = "1.0.0") -> dict[str, Any]:
    """What `/health` says of a version of the default policy."""
    (found,) = [each for each in daemon.health()["policies"][0]["versions"] if each["version"] == version]
    return dict(found)


def replicas(daemon: Daemon, version: str = "1.0.0") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = version_of(daemon, version)["replicas"]
    return found


def all_are_ready(daemon: Daemon) -> bool:
    return [each["state"] for each in replicas(daemon)] == ["ready", "ready"]


def status(daemon: Daemon) -> str:
    command = [sys.executable, "-m", "pillion", "status", "--admin", daemon.admin]
    return subprocess.run(command, capture_output=True, text=True, timeout=START_S_MAX, check=True).stdout


def act(daemon: Daemon, value: int) -> int:
    with pillion.connect(daemon.address, timeout_s=START_S_MAX) as session, session.begin(seed=1) as episode:
        return int(episode.act(row(value)))


def stop_worker(pid: int) -> None:
    send(pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(pid))


class Acting:
    """A session on the lane whose acts do not wait for their answers."""

    def __init__(self, daemon: Daemon, stack: ExitStack) -> None:
        self.lane = stack.enter_context(RawLane(daemon.address))
        self.group: RawEpisodeGroup = self.lane.hello().begin(slots=False)

    def send(self, value: int) -> None:
        """Sends an act, and waits until the daemon has read it."""
        self.lane.send(self.group.act_head(), row(value).tobytes())
        conversation = self.lane.conversation
        ping = Ping(conversation.session, conversation.epoch, self.lane.next())
        assert isinstance(self.lane.ask(encode(ping)), Pong)

    def receive(self) -> int:
        """Receives the answer."""
        reply, tensors = self.lane.receive(8)
        assert isinstance(reply, Action), reply
        return int(np.frombuffer(tensors[0], np.int64)[0])


def test_every_page_names_each_replica(patient: Daemon) -> None:
    version = version_of(patient)
    assert version["placement_reason"] == "engine.device is cpu, cpu"
    assert (version["device"], version["fallback"]) == ("cpu", "")
    each = version["replicas"]
    assert [(one["replica"], one["state"], one["device"], one["restarts"]) for one in each] == [
        (0, "ready", "cpu", 0),
        (1, "ready", "cpu", 0),
    ]
    pids = [one["pid"] for one in each]
    assert sorted(pids) == sorted(worker_pids(patient))
    assert version["worker"]["pid"] == pids[0]
    assert all(one["resident_bytes"] > 10_000_000 for one in each)
    (resident,) = patient.ask("GET", HOSTILE)[1]["resident"]
    assert [one["pid"] for one in resident["replicas"]] == pids
    (ready,) = patient.events("ready")
    assert ready["worker_pids"] == pids
    assert [event["replica"] for event in patient.events("worker_ready")] == [0, 1]
    shown = status(patient)
    for one in each:
        assert f"1.0.0 replica {one['replica']} on cpu worker: ready, pid {one['pid']}" in shown
    for number in ("0", "1"):
        labels = {"policy": "hostile", "version": "1.0.0", "replica": number}
        assert patient.metric("pillion_worker_state", **labels, state="ready") == 1
        assert patient.metric("pillion_worker_state", **labels, state="lost") == 0
        assert patient.metric("pillion_worker_resident_bytes", **labels) > 10_000_000
        assert patient.metric("pillion_engine_info", **labels, device="cpu", placement="worker") == 1


def test_batches_that_overlap_run_on_both_and_no_third_one_does(patient: Daemon) -> None:
    pids = worker_pids(patient)
    with ExitStack() as stack:
        sessions = [Acting(patient, stack) for _ in range(3)]
        for pid in pids:
            stop_worker(pid)
        for number, session in enumerate(sessions):
            session.send(number)
        wait_until(lambda: patient.health()["queue_rows"] == 1)
        for pid in pids:
            send(pid, signal.SIGCONT)
        assert [session.receive() for session in sessions] == [0, 1, 2]
    assert worker_pids(patient) == pids


def test_an_act_of_a_killed_replica_runs_on_the_other_at_once(patient: Daemon) -> None:
    before = [one["pid"] for one in replicas(patient)]
    with ExitStack() as stack:
        sessions = [Acting(patient, stack) for _ in range(2)]
        for pid in before:
            stop_worker(pid)
        for number, session in enumerate(sessions):
            session.send(number)
        send(before[0], signal.SIGKILL)
        send(before[1], signal.SIGCONT)
        assert [session.receive() for session in sessions] == [0, 1]
    wait_until(lambda: all_are_ready(patient))
    after = replicas(patient)
    assert (after[0]["restarts"], after[1]["restarts"], after[1]["pid"]) == (1, 0, before[1])
    assert after[0]["pid"] != before[0]
    (lost,) = patient.events("worker_lost")
    assert (lost["version"], lost["replica"], lost["cause"]) == ("hostile@1.0.0", 0, "ended")
    assert patient.metric("pillion_worker_restarts_total", version="1.0.0", replica="0") == 1
    assert patient.metric("pillion_worker_restarts_total", version="1.0.0", replica="1") == 0
    assert not patient.events("replica_out")


def test_a_shadow_sees_the_batches_of_both(patient: Daemon) -> None:
    body = {"arms": [], "shadow": {"version": "1.1.0", "share": 1.0}}
    assert patient.operation(patient.ask("PUT", f"{HOSTILE}/route", body))["outcome"] == "done"
    with BackgroundActor(patient.address, seed=1) as one, BackgroundActor(patient.address, seed=2) as other:
        one.wait_for(20)
        other.wait_for(20)
    assert set(one.outcomes) | set(other.outcomes) == {OK}

    def compared() -> int:
        shadow = patient.ask("GET", f"{HOSTILE}/shadow")[1]
        return int(shadow["rows"] + sum(shadow["skipped_rows"].values()))

    wait_until(lambda: compared() == one.acts + other.acts)
    assert patient.operation(patient.ask("PUT", f"{HOSTILE}/route", {"arms": []}))["outcome"] == "done"


def test_a_version_is_switched_with_all_its_replicas_and_unloaded_with_them(patient: Daemon) -> None:
    """Runs last with this daemon."""
    with BackgroundActor(patient.address) as actor:
        actor.wait_for(1)
        old = set(worker_pids(patient))
        switched = patient.operation(patient.ask("POST", f"{HOSTILE}/switch", {"version": "1.1.0"}))
        assert switched["outcome"] == "done"
        actor.wait_for(3)
    assert set(actor.outcomes) == {OK}
    assert len(worker_pids(patient)) == 4
    assert [one["state"] for one in replicas(patient, "1.1.0")] == ["ready", "ready"]
    new = set(worker_pids(patient)) - old
    assert {one["pid"] for one in replicas(patient, "1.1.0")} == new
    with ExitStack() as stack:
        sessions = [Acting(patient, stack) for _ in range(2)]
        for pid in new:
            stop_worker(pid)
        for number, session in enumerate(sessions):
            session.send(number)
        # What runs is answered before the daemon ends.
        os.kill(patient.pid, signal.SIGTERM)
        patient.wait_for_event("draining")
        for pid in new:
            send(pid, signal.SIGCONT)
        assert [session.receive() for session in sessions] == [0, 1]
    wait_until(lambda: not (old | new) & set(pids_alive()))


def pids_alive() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdecimal()}


def test_killed_and_stopped_replicas_lose_no_act(strict: Daemon) -> None:
    with ExitStack() as stack:
        actors = [stack.enter_context(BackgroundActor(strict.address, seed=seed)) for seed in (1, 2, 3)]
        for number, end in ((0, signal.SIGKILL), (1, signal.SIGSTOP), (1, signal.SIGKILL)):
            actors[0].wait_for(3)
            each = replicas(strict)
            victim, other = each[number]["pid"], each[1 - number]["pid"]
            send(victim, end)
            for actor in actors:
                actor.wait_for(3)
            wait_until(lambda lost=victim: all_are_ready(strict) and lost not in worker_pids(strict))  # type: ignore[misc]
            assert replicas(strict)[1 - number]["pid"] == other
    for actor in actors:
        assert set(actor.outcomes) == {OK}
    assert {event["cause"] for event in strict.events("worker_lost")} == {"ended", "hung"}


def kill_until_out(daemon: Daemon, number: int) -> int:
    """Kills every worker of a replica, until no other is started; returns how many there were."""
    until_s = time.monotonic() + START_S_MAX
    killed: set[int] = set()
    while (one := replicas(daemon)[number])["state"] != "out":
        assert time.monotonic() < until_s, one
        if one["pid"] is not None and one["pid"] not in killed:
            killed.add(one["pid"])
            send(one["pid"], signal.SIGKILL)
        time.sleep(0.01)
    return len(killed)


def test_a_version_is_out_only_when_all_its_replicas_are(strict: Daemon) -> None:
    """Runs last with this daemon."""
    assert kill_until_out(strict, 1) >= WORKER_LOSSES_MAX
    assert act(strict, 5) == 5
    assert version_of(strict)["worker"]["state"] == "ready"
    assert [event["replica"] for event in strict.events("replica_out")] == [1]
    assert strict.events("version_out") == []
    assert "1.0.0 replica 1 on cpu is out: its worker was killed by SIGKILL" in status(strict)
    # Whoever stages it again has the replica tried again.
    staged = strict.operation(strict.ask("POST", f"{HOSTILE}/stage", {"version": "1.0.0"}))
    assert staged["outcome"] == "done"
    wait_until(lambda: all_are_ready(strict))
    kill_until_out(strict, 0)
    kill_until_out(strict, 1)
    assert version_of(strict)["worker"]["state"] == "out"
    assert [event["replica"] for event in strict.events("replica_out")] == [1, 0, 1]
    assert [event["version"] for event in strict.events("version_out")] == ["hostile@1.0.0"]
    with pytest.raises(pillion.EngineOutError, match="cpu: its worker was killed by SIGKILL"):
        act(strict, 6)
    staged = strict.operation(strict.ask("POST", f"{HOSTILE}/stage", {"version": "1.0.0"}))
    assert staged["outcome"] == "done"
    assert act(strict, 7) == 7


def test_a_device_that_is_missing_and_a_recurrent_version_fall_back(
    store: Path, short_path: Path, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(
        "--policy",
        "lstm",
        policy="hostile@1.0.0",
        store=store,
        listen=[f"lane://{short_path}/falls.sock"],
        settings={"engine__device": "cpu,cuda:0"},
    )
    first, second = replicas(daemon)
    assert (first["device"], first["fallback"]) == ("cpu", "")
    assert second["device"] == "cpu"
    assert second["fallback"].startswith("cuda:0 was asked for: ")
    assert version_of(daemon)["fallback"] == second["fallback"]
    assert act(daemon, 9) == 9
    (recurrent,) = daemon.health()["policies"][1]["versions"]
    assert recurrent["replicas"] == []
    why = "cpu and cuda:0 were asked for: a recurrent version runs on one device"
    assert (recurrent["fallback"], recurrent["worker"]["state"]) == (why, "ready")
    assert len(worker_pids(daemon)) == 3


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("hostile@1.0.0", "cuda:0: engine.device_required: expected cuda:0, got cpu"),
        (
            "lstm",
            "engine.device_required: expected cpu and cuda:0, got cpu alone (a recurrent version runs on one device)",
        ),
    ],
)
def test_where_all_devices_are_required_a_missing_one_ends_the_start(store: Path, policy: str, message: str) -> None:
    command = [sys.executable, "-m", "pilliond", "--store", str(store), "--policy", policy, "--admin", ""]
    required = {"PILLION_ENGINE__DEVICE": "cpu,cuda:0", "PILLION_ENGINE__DEVICE_REQUIRED": "true"}
    environment = {**os.environ, **required}
    result = subprocess.run(command, capture_output=True, text=True, timeout=START_S_MAX, check=False, env=environment)
    assert result.returncode == os.EX_DATAERR, result
    assert message in result.stderr
