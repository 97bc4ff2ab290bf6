"""A daemon whose serving process stops, hangs, starves or dies: what it says of itself, and what it does. Real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import structlog

import pillion
from pilliond.limits import LIVE_AGE_MS_MAX, LOOK_MS, RESTART_DELAY_S_MIN, TICK_AGE_MS_MAX
from pilliond.linux.service_manager import ServiceManager
from pilliond.supervision.supervisor import Supervisor
from pilliond.supervision.watchdog import Watchdog
from tests.conftest import StartDaemon
from tests.daemon.supervision.looping_policy import ENDLESS, publish_looping
from tests.harness import START_S_MAX, WAIT_S_MAX, Daemon, wait_until

OBSERVATION = np.zeros(8, np.float32)
NEVER = {"serving__hang_s_max": 0}
SOON = {"serving__hang_s_max": 1}
GAVE_UP = os.EX_TEMPFAIL

BURN = "import os\nfor _ in range(6): os.fork()\nwhile True: pass"
"""64 processes that compute. The weight of one that runs only when idle is 3, that of each of them 1,024."""


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stops a process meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def state_of(daemon: Daemon) -> str:
    return str(daemon.health()["serving"]["state"])


def acts(daemon: Daemon) -> bool:
    """Whether a client gets an action."""
    with pillion.connect(daemon.address, timeout_s=WAIT_S_MAX) as session, session.begin() as episode:
        return bool(episode.act(OBSERVATION).shape == ())


# What it says


def test_a_stopped_serving_process_is_not_ready_once_its_last_tick_is_as_old_as_the_bound(
    start_daemon: StartDaemon,
) -> None:
    """Each answer says how old the last tick was. Whatever the machine does meanwhile, status and age must agree."""
    daemon = start_daemon(settings=NEVER)
    seen: list[tuple[bool, bool]] = []
    with stopped(daemon.serving_pid):
        while (True, True) not in seen:
            before_status = daemon.get("/readyz")[0]
            health = daemon.health()
            late = health["loop_lag_ms"]["tick_age"] > TICK_AGE_MS_MAX
            after_status, text = daemon.get("/readyz")
            assert before_status == 200 or late
            assert after_status == 503 or not late
            seen.append((late, after_status == 503))
        assert text.startswith("unresponsive: the serving process has made no progress for ")
        assert (health["phase"], health["serving"]["state"]) == ("ready", "unresponsive")
        assert daemon.get("/health")[0] == daemon.get("/v2/health/ready")[0] == 503
        assert daemon.get("/livez") == (200, "ok\n")
        lines = daemon.get("/metrics")[1].splitlines()
        assert {"pillion_ready 0.0", 'pillion_serving_state{state="unresponsive"} 1.0'} <= set(lines)
        daemon.wait_for_event("serving_unresponsive")
    wait_until(lambda: daemon.get("/readyz") == (200, "ready\n"))
    assert daemon.wait_for_event("serving_responsive")
    assert daemon.health()["serving"]["starts"] == 1
    assert (daemon.metric("pillion_serving_stalls_total"), daemon.metric("pillion_serving_hangs_total")) == (1, 0)
    assert acts(daemon)


def test_a_killed_serving_process_is_not_ready_until_the_next_one_is(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    daemon.kill_serving()
    answers = [daemon.get("/readyz")]
    while answers[-1][0] == 200:
        answers.append(daemon.get("/readyz"))
    assert answers[-1][1].split(":")[0].strip() in ("waiting", "starting", "warming")
    daemon.wait_ready(2)
    assert daemon.get("/readyz") == (200, "ready\n")
    serving = daemon.health()["serving"]
    assert (serving["starts"], serving["failures"], serving["last_exit_code"]) == (2, 1, -9)
    assert serving["restart_in_s"] is None


# What it does


def test_a_stopped_serving_process_is_killed_and_restarted(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(settings=SOON)
    pid = daemon.serving_pid
    os.kill(pid, signal.SIGSTOP)
    daemon.wait_ready(2)
    assert daemon.wait_for_event("serving_unresponsive")["state"] == "stopped"
    assert daemon.wait_for_event("serving_killed")["reason"].endswith("(stopped)")
    assert daemon.wait_for_event("serving_died")["exit_code"] == -9
    assert daemon.serving_pid != pid
    assert daemon.metric("pillion_serving_hangs_total") == 1
    assert acts(daemon)


def test_a_serving_process_that_computes_for_ever_is_killed_and_the_next_one_serves(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    publish_looping(tmp_path)
    daemon = start_daemon(policy="looping", store=tmp_path, settings={**SOON, "engine__placement": "inline"})
    with pillion.connect(daemon.address, timeout_s=WAIT_S_MAX) as session:
        with pytest.raises(pillion.EpisodeLostError):
            session.begin().act(ENDLESS)
        assert daemon.wait_for_event("serving_killed")["reason"].endswith("(runnable)")
        assert session.begin().act(np.ones(1, np.float32)).tolist() == [1.0]


def test_a_control_process_that_was_stopped_itself_kills_nobody(start_daemon: StartDaemon) -> None:
    """Longer than the bound for a hang. The serving process goes on meanwhile, or is stopped as well."""
    daemon = start_daemon(settings=SOON)
    serving_pid = daemon.serving_pid
    for also in ((), (serving_pid,)):
        with stopped(daemon.pid):
            for pid in also:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(2 * LIVE_AGE_MS_MAX / 1_000)
        # The control process goes on first, and looks.
        assert daemon.get("/livez")[0] in (200, 503)
        for pid in also:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: daemon.get("/livez") == (200, "ok\n") and daemon.get("/readyz")[0] == 200)
    assert daemon.health()["serving"]["starts"] == 1
    assert daemon.serving_pid == serving_pid
    assert not daemon.events("serving_killed")


def test_a_serving_process_that_gets_no_cpu_is_not_ready_and_is_not_killed(start_daemon: StartDaemon) -> None:
    """Others burn its CPU, and it may run only when they leave some. Late it is; hanging it is not."""
    daemon = start_daemon(settings=SOON)
    pid = daemon.serving_pid
    cpu = max(os.sched_getaffinity(0))
    os.sched_setaffinity(pid, {cpu})
    os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
    # In this session: the kernel may share the CPUs out among sessions first.
    burner = subprocess.Popen(["taskset", "-c", str(cpu), sys.executable, "-c", BURN], process_group=0)
    try:
        deadline_s = time.monotonic() + WAIT_S_MAX
        # Late by more than a hang takes: one that judged by the clock would have killed it.
        while not daemon.events("serving_killed") and not any(
            each["silent_s"] >= 3 for each in daemon.events("serving_responsive")
        ):
            if time.monotonic() > deadline_s:
                pytest.skip("the scheduler leaves an idle process too much of a busy CPU")
            time.sleep(LOOK_MS / 1_000)
    finally:
        os.killpg(burner.pid, signal.SIGKILL)
        burner.wait()
    assert daemon.events("serving_unresponsive")[0]["state"] == "runnable"
    assert not daemon.events("serving_killed")
    wait_until(lambda: daemon.get("/readyz")[0] == 200)
    assert daemon.serving_pid == pid


def test_a_stopped_serving_process_does_not_keep_the_daemon_from_ending(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(settings=SOON)
    pid = daemon.serving_pid
    os.kill(pid, signal.SIGSTOP)
    assert daemon.stop() == 0
    assert not Path(f"/proc/{pid}").exists()
    assert daemon.events("serving_killed")
    assert not daemon.events("serving_died")


def test_the_control_process_counts_as_alive_while_it_looks() -> None:
    now_ns = [0]
    log = structlog.get_logger()
    with closing(ServiceManager({})) as manager:
        watchdog = Watchdog(cast(Supervisor, None), 10.0, manager, log, lambda: now_ns[0])
        now_ns[0] = LIVE_AGE_MS_MAX * 1_000_000
        assert watchdog.is_live
        now_ns[0] += 1_000_000
        assert not watchdog.is_live
        assert watchdog.silent_ms == LIVE_AGE_MS_MAX + 1


# Restarts


def test_a_short_ready_does_not_reset_the_pause(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    for number in range(1, 4):
        daemon.kill_serving()
        died = daemon.wait_for_event("serving_died", number)
        assert (died["failures"], died["restart_in_s"]) == (number, RESTART_DELAY_S_MIN * 2 ** (number - 1))
        daemon.wait_ready(number + 1)
    assert acts(daemon)
    assert daemon.metric("pillion_serving_failures") == 3


def test_while_a_restart_is_due_health_says_when(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    waiting: list[dict[str, Any]] = []
    number = 1
    while not waiting:
        daemon.kill_serving()
        while not (ready := len(daemon.events("ready")) > number):
            serving = daemon.health()["serving"]
            if serving["state"] == "waiting" and serving["restart_in_s"] is not None:
                waiting.append(serving)
        assert ready
        number += 1
    assert all(each["pid"] is None and each["last_exit_code"] == -9 for each in waiting)
    assert all(0 <= each["restart_in_s"] <= RESTART_DELAY_S_MIN * 2 ** (number - 1) for each in waiting)
    assert waiting[0]["reason"] == "waiting: the serving process ended with -9; it is restarted after a pause"


def test_a_serving_process_that_does_not_stay_up_ends_the_daemon_with_a_code_of_its_own(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon(settings={"serving__restarts_max": 2})
    for number in range(1, 3):
        daemon.kill_serving()
        daemon.wait_ready(number + 1)
    daemon.kill_serving()
    assert daemon.process.wait(START_S_MAX) == GAVE_UP
    assert len(daemon.events("serving_died")) == 2
    (gave_up,) = daemon.events("serving_gave_up")
    assert (gave_up["exit_code"], gave_up["restarts"]) == (-9, 2)
    assert daemon.stderr.splitlines()[-1] == (
        "pilliond: the serving process does not stay up: it was restarted 2 times within 300 s; it ended with -9 last"
    )


# systemd


class NotifySocket:
    """What systemd gets. Owns the socket."""

    def __init__(self, path: Path) -> None:
        self.got: list[str] = []
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.settimeout(WAIT_S_MAX)

    def read_until(self, text: str) -> list[str]:
        """Reads until something begins with `text`; returns what came before it."""
        before: list[str] = []
        while True:
            message = self._socket.recv(4_096).decode()
            self.got.append(message)
            if message.startswith(text):
                return before
            before.append(message)

    def is_empty(self) -> bool:
        self._socket.setblocking(False)
        try:
            self._socket.recv(4_096)
        except BlockingIOError:
            return True
        finally:
            self._socket.settimeout(WAIT_S_MAX)
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NotifySocket]:
    """A notification socket that the daemons of the test are started with; the watchdog's period is a second."""
    path = short_path / "notify"
    notify = NotifySocket(path)
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    yield notify
    notify.close()
    path.unlink()


def test_systemd_gets_signs_of_life_only_while_the_serving_process_makes_progress(
    start_daemon: StartDaemon, systemd: NotifySocket
) -> None:
    daemon = start_daemon(settings={"serving__hang_s_max": 4})
    systemd.read_until("READY=1")
    systemd.read_until("STATUS=ready")
    for _ in range(3):
        systemd.read_until("WATCHDOG=1")
    os.kill(daemon.serving_pid, signal.SIGSTOP)
    systemd.read_until("STATUS=unresponsive: the serving process has made no progress for 1 s")
    # The signs of life end with the second or third look that sees no progress. There are 16 looks until it is killed.
    stalled = systemd.read_until("STATUS=starting")
    last = max(number for number, each in enumerate(stalled) if each.startswith("STATUS=unresponsive"))
    assert stalled[:last].count("WATCHDOG=1") <= 2
    # Then they go on: the control process restarts it.
    systemd.read_until("STATUS=ready")
    systemd.read_until("WATCHDOG=1")
    assert daemon.stop() == 0
    systemd.read_until("STOPPING=1")


def test_a_service_manager_that_watches_another_process_gets_no_signs_of_life(systemd: NotifySocket) -> None:
    notified = {"NOTIFY_SOCKET": systemd.path}
    watched = {**notified, "WATCHDOG_USEC": "1000000"}
    for environment in ({}, notified, {**watched, "WATCHDOG_PID": "1"}, {**watched, "WATCHDOG_USEC": "soon"}):
        with closing(ServiceManager(environment)) as manager:
            manager.ping(5_000_000_000)
        assert systemd.is_empty()
    with closing(ServiceManager({**watched, "WATCHDOG_PID": str(os.getpid())})) as manager:
        for now_ns in (0, 249_999_999, 250_000_000, 300_000_000):
            manager.ping(now_ns)
        manager.status("one")
        manager.status("one")
        manager.ready()
    systemd.read_until("READY=1")
    assert systemd.got == ["WATCHDOG=1", "WATCHDOG=1", "STATUS=one", "READY=1"]


# A client's view


def test_a_client_of_a_hanging_serving_process_goes_on_with_the_next_one(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(settings=SOON)
    with pillion.connect(daemon.address, timeout_s=3 * WAIT_S_MAX) as session:
        episode = session.begin()
        episode.act(OBSERVATION)
        os.kill(daemon.serving_pid, signal.SIGSTOP)
        with pytest.raises(pillion.EpisodeLostError):
            episode.act(OBSERVATION)
        assert session.begin().act(OBSERVATION).shape == ()
