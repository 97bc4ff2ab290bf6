"""The daemon from the operator's side: start, admin port, faults, stop, exit codes. Real processes and sockets."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

import pillion
from pillion_artifacts import Store
from pillion_artifacts.store.aliases import move_alias
from pillion_artifacts.store.daemon_locks import locked_digests
from tests.conftest import StartDaemon
from tests.harness import ROOT, START_S_MAX, STORE, WAIT_S_MAX, Daemon, blob_of, copy_examples, publish, wait_until

OBSERVATION = np.zeros(8, np.float32)
RESIDENT_BYTES_MAX = 250 * 1024 * 1024


def pilliond(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a daemon that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "pilliond", *arguments],
        capture_output=True,
        text=True,
        timeout=2 * START_S_MAX,
        check=False,
    )


def is_running(pid: int) -> bool:
    """Returns whether a process lives; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def has_child(pid: int, name: str) -> bool:
    """Returns whether a process of that name was started by another one, or by one of its children."""
    # Those that end meanwhile hide others: then the next look finds them.
    with suppress(psutil.NoSuchProcess):
        return any(child.name() == name for child in psutil.Process(pid).children(recursive=True))
    return False


def wait_until_gone(pid: int) -> None:
    deadline_s = time.monotonic() + WAIT_S_MAX
    while is_running(pid):
        assert time.monotonic() < deadline_s, f"process {pid} still runs"
        time.sleep(0.01)


# The admin port


def test_health_returns_the_state_of_the_daemon(daemon: Daemon) -> None:
    with pillion.connect(daemon.address) as session:
        session.begin().act(OBSERVATION)
        status, body = daemon.get("/health")
        health = json.loads(body)
        assert status == 200
        assert (health["phase"], health["policy"], health["digest"]) == ("ready", "lunar-lander", session.digest)
        assert set(health) >= {"sessions", "queue_rows", "loop_lag_ms", "gc_pauses", "engine", "uptime_s"}
        assert health["engine"]["kind"] == "onnxruntime"


def test_the_other_admin_pages_answer(daemon: Daemon) -> None:
    assert daemon.get("/livez") == (200, "ok\n")
    assert daemon.get("/readyz") == (200, "ready\n")
    info = json.loads(daemon.get("/info")[1])
    assert info["listen"] == daemon.addresses
    assert info["observation"][0]["shape"] == [8]
    assert info["event_loop"].startswith("uvloop ")
    assert daemon.get("/nothing")[0] == 404


def test_metrics_count_what_happened(daemon: Daemon) -> None:
    before = daemon.metric("pillion_requests_total", outcome="ok")
    rows_before = daemon.metric("pillion_inferences_total")
    with pillion.connect(daemon.address) as session:
        group = session.begin_many(3)
        for _ in range(5):
            group.act(np.zeros((3, 8), np.float32))
    assert daemon.metric("pillion_requests_total", outcome="ok") == before + 5
    assert daemon.metric("pillion_inferences_total") == rows_before + 15
    assert daemon.metric("pillion_request_duration_seconds_count") == before + 5
    assert daemon.metric("pillion_build_info") == 1


def test_promtool_accepts_the_metrics(daemon: Daemon) -> None:
    check_metrics(daemon)


def check_metrics(daemon: Daemon) -> None:
    """Checks the metrics of a daemon with promtool; skips if that is not installed."""
    if shutil.which("promtool") is None:
        message = "promtool is not installed: apt-get install prometheus"
        if os.environ.get("PILLION_REQUIRE_SYSTEM_PACKAGES"):
            pytest.fail(message)
        pytest.skip(message)
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=daemon.get("/metrics")[1], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_the_admin_port_may_be_a_unix_socket_of_this_user_alone(start_daemon: StartDaemon, short_path: Path) -> None:
    path = short_path / "admin.sock"
    daemon = start_daemon("--admin", f"unix://{path}")
    assert daemon.get("/readyz")[0] == 200
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# Addresses


def test_ipc_and_tcp_are_served_at_once_and_ipc_is_for_this_user_alone(
    start_daemon: StartDaemon, short_path: Path
) -> None:
    path = short_path / "both.sock"
    daemon = start_daemon(listen=[f"ipc://{path}", "tcp://127.0.0.1:0"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    actions = []
    for address in daemon.addresses:
        with pillion.connect(address) as session:
            actions.append(session.begin(seed=1).act(OBSERVATION))
    assert len(actions) == 2
    assert actions[0] == actions[1]


def test_a_port_or_a_socket_in_use_is_an_error_and_the_other_daemon_stays(daemon: Daemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        common = ["--store", str(STORE), "--policy", "lunar-lander"]
        for flags in (
            ["--listen", f"tcp://127.0.0.1:{port}", "--admin", ""],
            ["--listen", daemon.address, "--admin", ""],
            ["--listen", "tcp://127.0.0.1:0", "--admin", f"http://127.0.0.1:{port}"],
        ):
            result = pilliond(*common, *flags)
            assert result.returncode == os.EX_UNAVAILABLE
            assert result.stderr.startswith("pilliond: ")
            assert result.stderr.strip().endswith("is in use")
            assert result.stderr.count("\n") == 1
    with pillion.connect(daemon.address) as session:
        session.begin().act(OBSERVATION)


def test_a_stale_socket_file_is_no_obstacle(start_daemon: StartDaemon, short_path: Path) -> None:
    path = short_path / "stale.sock"
    first = start_daemon(listen=[f"ipc://{path}"])
    serving_pid = first.serving_pid
    first.kill()
    wait_until_gone(serving_pid)
    assert path.exists()
    second = start_daemon(listen=[f"ipc://{path}"])
    with pillion.connect(second.address) as session:
        session.begin().act(OBSERVATION)


def test_a_stopped_daemon_leaves_no_socket_file_of_its_own_and_none_of_its_successors(
    start_daemon: StartDaemon, short_path: Path
) -> None:
    data, admin = short_path / "gone.sock", short_path / "gone-admin.sock"
    daemon = start_daemon("--admin", f"unix://{admin}", listen=[f"ipc://{data}"])
    assert data.exists()
    assert daemon.stop() == 0
    assert not data.exists()
    assert not admin.exists()
    daemon = start_daemon(listen=[f"ipc://{data}"])
    data.unlink()
    data.write_text("a successor's")
    assert daemon.stop() == 0
    assert data.read_text() == "a successor's"


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--nonsense"], os.EX_USAGE, "--nonsense"),
        (["--log-level", "loud"], os.EX_USAGE, "loud"),
        (["extra"], os.EX_USAGE, "extra"),
        (["--config", "/nonexistent.toml"], os.EX_CONFIG, "No such file"),
        (["--listen", "tcp://0.0.0.0:5555"], os.EX_CONFIG, "expected a loopback address"),
        (["--listen", "udp://x"], os.EX_CONFIG, "expected lane:///PATH, ipc:///PATH"),
        (["--admin", "nowhere"], os.EX_CONFIG, "admin.listen"),
        (
            ["--store", "/nonexistent", "--policy", "x"],
            os.EX_DATAERR,
            "there is no store at /nonexistent: name its folder with --store or store.path\n",
        ),
        (["--store", "/nonexistent"], os.EX_DATAERR, "with --store or store.path\n"),
        (["--store", str(STORE), "--policy", "walker"], os.EX_DATAERR, "policy 'walker' is not in the store"),
        (["--store", str(STORE), "--policy", "lunar-lander@9.9.9"], os.EX_DATAERR, "no version that fits '9.9.9'"),
        (["--store", str(STORE)], os.EX_DATAERR, "expected the name of a policy"),
    ],
)
def test_a_mistake_is_one_clear_line_and_a_sysexits_code(arguments: list[str], code: int, message: str) -> None:
    result = pilliond(*arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.startswith("pilliond: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_no_artifact_reaches_a_loader_before_its_hash_has_been_checked(tmp_path: Path) -> None:
    copy_examples(tmp_path / "store")
    model = blob_of(tmp_path / "store", "lunar-lander", "model.onnx")
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 0x10
    model.write_bytes(data)
    result = pilliond("--store", str(tmp_path / "store"), "--policy", "lunar-lander", "--admin", "")
    assert result.returncode == os.EX_DATAERR
    assert "model.onnx is not what was published" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_published_model_that_does_not_run_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    card = blob_of(STORE, "lunar-lander", "model_card.yaml").read_text()
    model = blob_of(STORE, "lunar-lander", "model.onnx").read_bytes()
    assert b"Gemm" in model
    publish(tmp_path / "store", "lunar-lander", "1.0.0", model.replace(b"Gemm", b"Gomm"), card)
    result = pilliond("--store", str(tmp_path / "store"), "--listen", f"ipc://{tmp_path}/x.sock", "--admin", "")
    assert result.returncode == os.EX_DATAERR
    assert "lunar-lander@1.0.0: onnxruntime cannot load the model" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_running_daemon_locks_the_version_that_it_serves_until_it_ends(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    copy_examples(tmp_path / "store")
    digest = Store(tmp_path / "store").resolve("lunar-lander").digest
    daemon = start_daemon(store=tmp_path / "store")
    assert locked_digests(tmp_path / "store") == {digest}
    daemon.kill()
    assert locked_digests(tmp_path / "store") == set()


def test_an_alias_and_a_digest_name_what_is_served(start_daemon: StartDaemon, tmp_path: Path) -> None:
    store = copy_examples(tmp_path / "store")
    digest = move_alias(store, "lunar-lander", "stable", "1.0.0", expected="").digest
    for policy in ("lunar-lander@stable", f"lunar-lander@{digest}"):
        daemon = start_daemon(store=store.root, policy=policy)
        assert daemon.health()["digest"] == digest
        daemon.stop()


# Life and death


def test_sigterm_drains_says_goodbye_and_exits_0(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    with pillion.connect(daemon.address) as session:
        episode = session.begin()
        episode.act(OBSERVATION)
        serving_pid = daemon.serving_pid
        assert daemon.stop() == 0
        with pytest.raises(pillion.EpisodeLostError, match="the daemon ended the session"):
            episode.act(OBSERVATION)
    wait_until_gone(serving_pid)


def test_a_serving_process_that_dies_is_restarted_and_logged(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    with pillion.connect(daemon.address) as session:
        episode = session.begin()
        episode.act(OBSERVATION)
        daemon.kill_serving()
        daemon.wait_ready(2)
        assert daemon.wait_for_event("serving_died")["exit_code"] == -9
        with pytest.raises(pillion.EpisodeLostError):
            episode.act(OBSERVATION)
        session.begin().act(OBSERVATION)
    assert daemon.health()["serving"]["starts"] == 2
    assert daemon.metric("pillion_serving_starts_total") == 2


def test_the_serving_process_dies_with_its_parent(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    serving_pid = daemon.serving_pid
    daemon.kill()
    wait_until_gone(serving_pid)


def test_a_bug_in_the_serving_process_ends_it_with_a_traceback_for_the_operator(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from pilliond.ipc import control_channel as channel\n"
        "from pilliond.serving import __main__ as serving\n"
        "from tests.daemon.support.startup_config import startup_config\n"
        "end, serving_end = channel.make_channel()\n"
        "channel.send_startup(end, startup_config(sys.argv[1]))\n"
        "serving.ServingLoop._wait = lambda self: 1 / 0\n"
        "sys.argv[1:] = [str(serving_end.detach()), str(os.getppid())]\n"
        "sys.exit(serving.main())\n"
    )
    command = [sys.executable, "-c", script, f"lane://{tmp_path}/lane.sock"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=START_S_MAX, check=False, cwd=ROOT)
    assert result.returncode == os.EX_SOFTWARE
    assert "ZeroDivisionError" in result.stderr


def test_a_killed_client_leaves_no_session_behind(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    script = (
        "import os, pillion, numpy, sys\n"
        "session = pillion.connect(sys.argv[1])\n"
        "session.begin().act(numpy.zeros(8, 'float32'))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, daemon.address], check=False, timeout=START_S_MAX)
    deadline_s = time.monotonic() + 3 * WAIT_S_MAX
    while daemon.metric("pillion_sessions_dropped_total") < 1:
        assert time.monotonic() < deadline_s, daemon.health()
        time.sleep(0.1)


def test_both_processes_together_stay_below_250_mb(daemon: Daemon) -> None:
    health = daemon.health()
    assert health["serving"]["resident_bytes"] + health["control"]["resident_bytes"] < RESIDENT_BYTES_MAX


def test_beside_the_serving_loop_run_no_threads_but_those_of_zeromq(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    with pillion.connect(daemon.address) as session:
        session.begin().act(OBSERVATION)
        tasks = Path(f"/proc/{daemon.serving_pid}/task")
        names = sorted(
            (task / "comm").read_text().strip() for task in tasks.iterdir() if task.name != tasks.parent.name
        )
    assert names == ["ZMQbg/IO/0", "ZMQbg/Reaper"]


def test_the_serving_process_has_no_http_no_yaml_and_no_torch_in_it() -> None:
    script = "import sys, pilliond.serving.__main__; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    forbidden = {"aiohttp", "torch", "structlog", "prometheus_client", "click", "http.server", "gymnasium"}
    assert not forbidden & set(loaded)


# Documents and the unit


@pytest.mark.parametrize("with_credentials", [False, True])
def test_systemd_accepts_the_unit(tmp_path: Path, with_credentials: bool) -> None:
    if shutil.which("systemd-analyze") is None:
        message = "systemd-analyze is not installed: apt-get install systemd"
        if os.environ.get("PILLION_REQUIRE_SYSTEM_PACKAGES"):
            pytest.fail(message)
        pytest.skip(message)
    text = (ROOT / "systemd" / "pilliond.service").read_text()
    credentials = [line for line in text.splitlines() if line.startswith("#LoadCredential=")]
    page = (ROOT / "systemd" / "README.md").read_text()
    assert [line.removeprefix("#") for line in credentials] == re.findall(r"^LoadCredential=.*$", page, re.MULTILINE)
    unit = tmp_path / "pilliond.service"
    unit.write_text(text.replace("#LoadCredential=", "LoadCredential=") if with_credentials else text)
    checked = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal, see proc(5)."""
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = re.findall(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_a_stop_ends_a_start_whose_worker_never_gets_ready(short_path: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *--check*) exec {sys.executable} "$@";; esac\nexec sleep 300\n')
    python.chmod(0o755)
    arguments = ["--store", str(STORE), "--policy", "lunar-lander", "--listen", f"lane://{short_path}/stopped.sock"]
    settings = {"PILLION_ENGINE__PLACEMENT": "worker", "PILLION_ENGINE__PYTHON": str(python)}
    daemon = Daemon([*arguments, "--admin", ""], tmp_path / "stderr", settings)
    try:
        # The worker starts while the policy is still verified: until then a signal ends the daemon as any other process.
        wait_until(lambda: has_child(daemon.pid, "sleep") and catches(daemon.pid, signal.SIGTERM))
        assert daemon.stop() == os.EX_OK
    finally:
        if daemon.process.poll() is None:
            daemon.kill()
    assert [event["event"] for event in map(json.loads, daemon.stderr.splitlines())] == ["draining", "stopped"]
