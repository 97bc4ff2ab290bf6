"""The settings of the serving process take effect, and it busy-polls only while a client has a session."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import pillion
from pilliond.limits import CERTIFIED_OBSERVATIONS_MAX, CONTROL_NICENESS, SERVING_SLICE_US
from tests.conftest import StartDaemon
from tests.daemon.support.policies.hostile import publish_hostile
from tests.daemon.support.process_resources import cpu_s
from tests.harness import START_S_MAX, TIME_UNIT_S, WAIT_S_MAX, Daemon, wait_until

OBSERVATION = np.zeros(8, np.float32)
CPUS = sorted(os.sched_getaffinity(0))
HAS_SLICES = tuple(map(int, platform.release().split(".")[:2])) >= (6, 12)
"""Whether a thread can request a time slice: since Linux 6.12."""

IN_WORKER = {"engine__placement": "worker"}

SPIN_US = 1_000_000
"""The longest that the settings allow. A loop that polled only one carrier for so long would keep the others waiting."""

IDLE_CPU_S_MAX = 0.15
"""The most CPU time that a sleeping process uses within a second."""


def allowed_cpus(pid: int) -> set[str]:
    """Returns the `Cpus_allowed_list` of each thread of a process, see proc(5)."""
    texts = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return {found[1] for text in texts if (found := re.search(r"^Cpus_allowed_list:\s*(\S+)$", text, re.MULTILINE))}


def threads_of(pid: int) -> list[int]:
    """Returns the ids of the threads of a process."""
    return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]


def wait_until_spinning_is(daemon: Daemon, spinning: bool) -> None:
    wait_until(lambda: daemon.health()["busy_poll"]["spinning"] is spinning)


# CPUs, the interpreter and its garbage collector


@pytest.mark.parametrize("cpu", {CPUS[0], CPUS[-1]})
def test_every_thread_of_the_serving_process_stays_on_its_cpus(start_daemon: StartDaemon, cpu: int) -> None:
    daemon = start_daemon(settings={"serving__cpus": cpu})
    with pillion.connect(daemon.address) as session:
        session.begin().act(OBSERVATION)
    assert allowed_cpus(daemon.serving_pid) == {str(cpu)}
    assert daemon.health()["serving"]["cpus"] == [cpu]
    assert sorted(os.sched_getaffinity(daemon.pid)) == CPUS


def test_the_serving_process_and_its_successor_run_at_a_higher_priority(daemon: Daemon) -> None:
    """Only a privileged process can lower its niceness, and the parent of the successor has raised its own."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    for start in (1, 2):
        serving = daemon.health()["serving"]
        assert (serving["starts"], serving["niceness"]) == (start, own)
        assert serving["slice_us"] == (SERVING_SLICE_US if HAS_SLICES else None)
        assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads_of(serving["pid"])} == {own}
        niceness = [os.getpriority(os.PRIO_PROCESS, thread) for thread in threads_of(daemon.pid)]
        assert os.getpriority(os.PRIO_PROCESS, daemon.pid) == min(19, own + CONTROL_NICENESS)
        assert own in niceness
        os.kill(serving["pid"], signal.SIGKILL)
        daemon.wait_for_event("ready", start + 1)


def test_without_the_setting_it_runs_on_every_cpu_of_the_daemon(daemon: Daemon) -> None:
    assert daemon.health()["serving"]["cpus"] == CPUS


def test_a_cpu_that_does_not_exist_is_a_settings_error(start_daemon: StartDaemon) -> None:
    with pytest.raises(AssertionError, match="cpus: expected some of"):
        start_daemon(settings={"serving__cpus": max(CPUS) + 1})


def resident_bytes(pid: int) -> Counter[str]:
    """Returns the resident memory of a process, by what is mapped there: a path, or for example `[heap]`, see proc(5)."""
    found: Counter[str] = Counter()
    name = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if mapping := re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)", line):
            name = mapping[1]
        elif line.startswith("Rss:"):
            found[name] += int(line.split()[1]) * 1024
    return found


def test_it_keeps_no_observations_that_were_drawn_to_certify_a_version(start_daemon: StartDaemon) -> None:
    small, large = (
        resident_bytes(start_daemon(policy=policy, settings=IN_WORKER).serving_pid)["[heap]"]
        for policy in ("lunar-lander", "cart-pole-pixels")
    )
    # They are drawn as float64.
    drawn_bytes = CERTIFIED_OBSERVATIONS_MAX * 4 * 84 * 84 * 8
    assert small > 0
    assert large < small + drawn_bytes


def libraries_of(pid: int) -> set[str]:
    """Returns the names of the packages that a process has libraries of in its memory."""
    return set(re.findall(r"/site-packages/(\w+)/", Path(f"/proc/{pid}/maps").read_text()))


@pytest.mark.parametrize(("placement", "has_library"), [("auto", True), ("worker", False)])
def test_it_and_its_successor_have_onnx_runtime_in_their_memory_only_if_a_version_may_run_inline(
    start_daemon: StartDaemon, tmp_path: Path, placement: str, has_library: bool
) -> None:
    """This version may not: it is not bounded. Of another one nobody knows."""
    publish_hostile(tmp_path / "store")
    settings = {"engine__placement": placement}
    daemon = start_daemon(policy="hostile", store=tmp_path / "store", settings=settings)
    for start in (1, 2):
        health = daemon.health()
        serving, (version,) = health["serving"]["pid"], health["policies"][0]["versions"]
        assert (health["serving"]["starts"], version["placement"]) == (start, "worker")
        assert "onnxruntime" in libraries_of(version["worker"]["pid"])
        libraries = libraries_of(serving)
        assert "numpy" in libraries
        assert ("onnxruntime" in libraries) is has_library
        os.kill(serving, signal.SIGKILL)
        daemon.wait_for_event("ready", start + 1)


def test_the_switch_interval_and_the_gc_freeze_follow_the_settings(daemon: Daemon, start_daemon: StartDaemon) -> None:
    by_default = daemon.health()["serving"]
    assert by_default["switch_interval_us"] == 50
    assert by_default["gc_frozen_objects"] > 10_000
    other = start_daemon(settings={"serving__switch_interval_us": 700, "serving__gc_freeze": "false"})
    assert other.health()["serving"]["switch_interval_us"] == 700
    assert other.health()["serving"]["gc_frozen_objects"] == 0


# Busy polling


@pytest.fixture
def spinning_daemon(start_daemon: StartDaemon, short_path: Path) -> Daemon:
    """A daemon on every carrier that spins for the longest time that the settings allow."""
    listen = [f"lane://{short_path}/spin.lane", f"ipc://{short_path}/spin.zmq", "tcp://127.0.0.1:0"]
    return start_daemon(listen=listen, settings={"serving__busy_poll_us": SPIN_US})


def test_it_spins_while_a_client_has_a_session_and_health_reports_it(
    spinning_daemon: Daemon,
) -> None:
    pid = spinning_daemon.serving_pid
    assert spinning_daemon.health()["busy_poll"] == {"us": SPIN_US, "spinning": False, "spun_s": 0}
    with pillion.connect(spinning_daemon.address) as session:
        episode = session.begin()
        episode.act(OBSERVATION)
        wait_until_spinning_is(spinning_daemon, True)
        # Other processes may want the same core: wait for the CPU time, however long it takes to get. It spins for
        # `busy_poll_us` after an act, which a busy host may spend on others, so there is another act now and then.
        used_s, acted_s = cpu_s(pid), time.monotonic()

        def has_spun() -> bool:
            nonlocal acted_s
            if time.monotonic() - acted_s > SPIN_US / 1e6:
                episode.act(OBSERVATION)
                acted_s = time.monotonic()
            return cpu_s(pid) - used_s >= 4 * IDLE_CPU_S_MAX

        wait_until(has_spun, START_S_MAX)
    wait_until_spinning_is(spinning_daemon, False)
    spun_s = spinning_daemon.metric("pillion_busy_poll_seconds_total")
    assert cpu_s_in_a_second(pid) < IDLE_CPU_S_MAX
    assert 0 < spun_s < spinning_daemon.health()["uptime_s"]
    assert spinning_daemon.metric("pillion_busy_poll_seconds_total") == spun_s


def cpu_s_in_a_second(pid: int) -> float:
    """Returns the CPU time that a process uses within the next second."""
    before_s = cpu_s(pid)
    time.sleep(1)
    return cpu_s(pid) - before_s


def test_while_it_spins_it_polls_every_carrier(spinning_daemon: Daemon) -> None:
    # If only a sleeping loop polled a carrier, each of its acts would wait for the end of a spin: a second.
    deadline_s = time.monotonic() + 3 * WAIT_S_MAX
    sessions = [pillion.connect(address, timeout_s=WAIT_S_MAX) for address in spinning_daemon.addresses]
    try:
        episodes = [session.begin(seed=1) for session in sessions]
        for _ in range(100):
            assert len({int(episode.act(OBSERVATION)) for episode in episodes}) == 1
            assert time.monotonic() < deadline_s
    finally:
        for session in sessions:
            session.close()
    assert spinning_daemon.metric("pillion_resends_total") == 0


def test_while_it_spins_it_accepts_new_clients_and_drains(spinning_daemon: Daemon) -> None:
    with pillion.connect(spinning_daemon.address) as first:
        first.begin().act(OBSERVATION)
        for address in spinning_daemon.addresses:
            with pillion.connect(address) as second:
                second.begin().act(OBSERVATION)
        assert spinning_daemon.stop() == 0


def test_while_it_spins_a_batch_that_is_not_full_runs_when_it_is_due(
    start_daemon: StartDaemon,
) -> None:
    # The spin must end when the batch is due, not after `busy_poll_us`.
    settings = {"serving__busy_poll_us": SPIN_US, "limits__batch_wait_us_max": 1_000}
    daemon = start_daemon(settings=settings)
    with pillion.connect(daemon.address) as session:
        session.begin()
        episode = session.begin()
        for _ in range(50):
            episode.act(OBSERVATION)
        assert episode.last.timings.batch_close == "wait_elapsed"
    assert daemon.metric("pillion_resends_total") == 0


ONE_CORE_ACTS = 8_000
"""If one side kept the core for a time slice in each act, the test would time out."""

PINNED_CLIENT = f"""
import os, sys, numpy, pillion
os.sched_setaffinity(0, {{int(sys.argv[2])}})
with pillion.connect(sys.argv[1], busy_poll_us=int(sys.argv[3]), timeout_s=30) as session, session.begin(seed=1) as episode:
    for _ in range({ONE_CORE_ACTS}):
        episode.act(numpy.zeros(8, "float32"))
print(episode.last.sequence)
"""


@pytest.mark.parametrize("carrier", ["lane", "ipc"])
@pytest.mark.parametrize("client_busy_poll_us", [0, SPIN_US])
def test_on_one_core_a_spinning_daemon_and_its_client_yield_to_each_other(
    start_daemon: StartDaemon, short_path: Path, carrier: str, client_busy_poll_us: int
) -> None:
    cpu = CPUS[-1]
    daemon = start_daemon(
        listen=[f"{carrier}://{short_path}/{carrier}-one-core.sock"],
        settings={"serving__busy_poll_us": SPIN_US, "serving__cpus": cpu},
    )
    command = [sys.executable, "-c", PINNED_CLIENT, daemon.address, str(cpu), str(client_busy_poll_us)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=20 * TIME_UNIT_S, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert daemon.metric("pillion_requests_total", outcome="ok") == ONE_CORE_ACTS
    assert daemon.metric("pillion_resends_total") == 0
    assert daemon.health()["busy_poll"]["spun_s"] > 0


def test_two_clients_that_spin_on_the_daemons_core_both_make_progress(
    start_daemon: StartDaemon, short_path: Path
) -> None:
    cpu = CPUS[-1]
    listen = [f"lane://{short_path}/two-on-one.sock"]
    daemon = start_daemon(listen=listen, settings={"serving__busy_poll_us": SPIN_US, "serving__cpus": cpu})
    command = [sys.executable, "-c", PINNED_CLIENT, daemon.address, str(cpu), str(SPIN_US)]
    codes: list[int] = []

    def run() -> None:
        codes.append(subprocess.run(command, capture_output=True, timeout=40 * TIME_UNIT_S, check=False).returncode)

    clients = [threading.Thread(target=run) for _ in range(2)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert codes == [0, 0]
    assert daemon.metric("pillion_requests_total", outcome="ok") == 2 * ONE_CORE_ACTS
