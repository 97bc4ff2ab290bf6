"""`pillion bench load` counts all acts, and reports the placement and the machine."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from pillion_artifacts import Store
from pillion_bench.errors import BadOptionError
from pillion_bench.measurements.load import LoadOptions
from pillion_bench.process.placement import Placement
from pillion_bench.process.target import Target
from pillion_bench.roles.load_driver import LoadRequest, Tally, acts_made
from tests.bench.conftest import report_of, run_pillion
from tests.harness import START_S_MAX, STORE, WAIT_S_MAX, Daemon

SHORT = ("--seconds", "0.3", "--warmup", "0.1", "--floor-seconds", "0.05")
PERCENTILES = {"p50", "p90", "p99", "p99.9"}
KEYS = {
    "n", "rows_per_s", "latency_us", "engine_us", "floor_us", "added_us", "added_over_floor_zmq", "noise", "floors",
    "errors", "sessions", "rows", "processes", "connections", "seconds", "pin", "server", "carrier", "observations", "policy",
    "version", "digest", "daemon", "host",
}  # fmt: skip
ANYWHERE = Target("ipc:///nowhere", "", "", Placement("none", None, None))


def test_the_report_has_its_keys_and_counts_add_up() -> None:
    report = report_of("load", *SHORT)
    assert report.keys() == KEYS
    assert report["n"] > 0
    assert report["errors"] == 0
    assert report["rows_per_s"] == pytest.approx(report["n"] / 0.3, abs=0.1)
    for key in ("latency_us", "engine_us", "added_us"):
        assert report[key].keys() == PERCENTILES
    assert report["floor_us"].keys() == {"zmq", "lane"}
    assert min(report["floor_us"].values()) > 0
    assert report["digest"].startswith("sha256:")
    assert report["daemon"]["resident_mb"] > 0
    assert report["host"].keys() == {"cpu", "cpus", "kernel", "python"}


@pytest.mark.parametrize(
    ("sessions", "rows", "processes", "connections"), [(16, 1, 1, 1), (4, 64, 1, 1), (1, 8, 1, 1), (5, 2, 2, 2)]
)
def test_rows_of_many_sessions_add_up(
    daemon: Daemon, sessions: int, rows: int, processes: int, connections: int
) -> None:
    report = report_of(
        "load", *SHORT, "--address", daemon.address, "--sessions", str(sessions), "--rows", str(rows),
        "--processes", str(processes), "--connections", str(connections),
    )  # fmt: skip
    assert report["n"] > sessions
    assert report["errors"] == 0
    assert report["rows_per_s"] == pytest.approx(report["n"] * rows / 0.3, abs=0.1)
    assert report["pin"].endswith("client on cpu " + report["pin"].rsplit(" ", 1)[1].rstrip(")") + ")")
    assert "client only" in report["pin"]


def test_sessions_are_closed_when_the_load_is_over(daemon: Daemon) -> None:
    before = daemon.health()["sessions"]
    report_of("load", *SHORT, "--address", daemon.address, "--sessions", "3")
    deadline_s = time.monotonic() + WAIT_S_MAX
    while daemon.health()["sessions"] > before:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_sessions_are_distributed_over_the_processes() -> None:
    plans = LoadOptions(sessions=5, rows=4, processes=2, seed=100).plans(ANYWHERE)
    assert [plan.sessions for plan in plans] == [3, 2]
    assert [plan.seed for plan in plans] == [100, 112]


def test_fewer_large_acts_are_prepared() -> None:
    spec = Store(STORE).load("lunar-lander").card.spec()
    assert acts_made(spec, 1) == 64
    assert 1 <= acts_made(spec, 256 * 1024) < 64


def test_each_connection_needs_a_session() -> None:
    with pytest.raises(BadOptionError, match=r"--sessions: expected at least .* \(4\), got 3"):
        LoadOptions(sessions=3, processes=2, connections=2).plans(ANYWHERE)


def test_only_acts_answered_in_the_counted_time_count() -> None:
    tally = Tally(LoadRequest(100, 200))
    for now_ns in (99, 100, 199, 200):
        tally.add(now_ns - 10, now_ns, 3)
        tally.refused(now_ns)
    result = tally.result()
    assert np.frombuffer(result.latency_ns, np.int64).tolist() == [10, 10]
    assert np.frombuffer(result.engine_ns, np.int64).tolist() == [3, 3]
    assert result.errors == 2


def test_more_rows_than_the_daemon_takes_are_refused_in_one_line(daemon: Daemon) -> None:
    done = run_pillion("bench", "load", "--rows", "1000", "--address", daemon.address)
    assert done.returncode == 64
    assert done.stderr == "pillion: --rows: the daemon takes at most 256, got 1000\n"


def test_an_unknown_policy_is_refused_in_one_line() -> None:
    done = run_pillion("bench", "load", "--policy", "nobody")
    assert done.returncode == 65
    assert "'nobody' is not in the store" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_load_that_is_terminated_leaves_no_process_behind() -> None:
    command = [sys.executable, "-m", "pillion", "bench", "load", "--seconds", "60", "--floor-seconds", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        children = _children_when(psutil.Process(process.pid), count=7)
        process.terminate()
        assert process.wait(START_S_MAX) == 128 + signal.SIGTERM
        _, alive = psutil.wait_procs(children, START_S_MAX)
    assert not alive


def _children_when(process: psutil.Process, count: int) -> list[psutil.Process]:
    """Waits for `count` descendants of a process: two of the daemon, one load driver, four of the baselines."""
    deadline_s = time.monotonic() + START_S_MAX
    while len(children := process.children(recursive=True)) < count:
        assert time.monotonic() < deadline_s, children
        time.sleep(0.02)
    return children
