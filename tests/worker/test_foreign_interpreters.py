"""A worker runs in another interpreter, which has nothing of ours; one that cannot run workers says so in one line."""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

import pillion_worker
from pillion_worker.channel import PROTOCOL, receive_packet, send_packet
from pillion_worker.tensors import LoadRequest
from pilliond.engine.interface import EngineError
from pilliond.engine.load_request import load_request
from pilliond.ipc.worker_process import why_no_workers, worker_command, worker_environment
from tests.harness import WAIT_S_MAX, wait_until
from tests.worker.support.policies import looking_up, shipped
from tests.worker.support.processes import Host, sealed
from tests.worker.support.pythons import foreign_python, python_of

BOOTSTRAP = str(Path(pillion_worker.__file__ or "").with_name("bootstrap.py"))


def attach(host: Host, python: str) -> None:
    """Starts a worker as the daemon does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, sealed(host.policy.model) as model:
        process = subprocess.Popen(
            worker_command(python, theirs.fileno()), pass_fds=[theirs.fileno()], env=worker_environment(python)
        )
        host.processes.append(process)
        host.engine.attach(ours, model)


def test_the_daemons_own_interpreter_runs_a_worker_through_the_bootstrap_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    with Host(looking_up()) as host:
        attach(host, sys.executable)
        host.engine.wait_ready(WAIT_S_MAX)
        assert host.run([2]) == [12.0]
        assert BOOTSTRAP in Path(f"/proc/{host.process.pid}/cmdline").read_text()
        environment = Path(f"/proc/{host.process.pid}/environ").read_text()
        assert "PYTHONPATH" not in environment
        assert "OPENBLAS_NUM_THREADS=1" in environment


def modules_of(python: str) -> dict[str, str]:
    """The file of each module that an interpreter has loaded when a worker could begin, and its path under `sys.path`."""
    code = f"""
import json, runpy, sys
sys.argv[1:] = ["--check"]
try:
    runpy.run_path({BOOTSTRAP!r}, run_name="__main__")
except SystemExit:
    pass
files = {{name: getattr(module, "__file__", None) for name, module in sys.modules.items()}}
print(json.dumps({{**{{name: file for name, file in files.items() if file}}, "path": ":".join(sys.path)}}))
"""
    result = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=WAIT_S_MAX)
    check, found = result.stdout.splitlines()
    assert json.loads(check)["why_not"] == "", check
    modules: dict[str, str] = json.loads(found)
    return modules


def test_nothing_of_the_daemon_but_the_worker_reaches_another_interpreter() -> None:
    python = foreign_python()
    modules = modules_of(python)
    folder = str(Path(BOOTSTRAP).parent)
    ours = {name for name, file in modules.items() if file.startswith(folder)}
    assert {"pillion_worker", "pillion_worker.worker"} <= ours
    assert {name.partition(".")[0] for name in ours} - {"__main__"} == {"pillion_worker"}
    own_numpy = str(Path(np.__file__).parent)
    assert modules["numpy"] != np.__file__
    assert not any(file.startswith(own_numpy) for file in modules.values())
    paths = modules["path"].split(":")
    assert not {folder, str(Path(folder).parent), str(Path(own_numpy).parent), os.getcwd(), ""} & set(paths)


def test_a_check_tells_of_each_interpreter_that_runs_workers() -> None:
    assert why_no_workers(sys.executable) == ""
    assert why_no_workers(foreign_python()) == ""


@pytest.mark.parametrize("version", ["3.9", "3.12", "3.13"])
def test_a_worker_starts_on_other_pythons(version: str) -> None:
    """Its engine is not there, which it says: all before that works."""
    python = python_of(version, "numpy")
    assert why_no_workers(python) == ""
    with Host(shipped("lunar-lander"), engine="no such engine") as host:
        attach(host, python)
        with pytest.raises(EngineError, match=r"^engine: expected one of .*, got 'no such engine'$"):
            host.engine.wait_ready(WAIT_S_MAX)
        assert host.engine.is_refused


@pytest.mark.parametrize(
    ("python", "why"),
    [
        ("/nowhere/python", "cannot start /nowhere/python: No such file or directory"),
        ("/etc", "expected an interpreter, such as /etc/bin/python, got the folder /etc"),
        ("/bin/true", "expected Python 3.9 or later, got /bin/true, which ended with 0: it said nothing"),
        ("/bin/cat", "expected Python 3.9 or later, got /bin/cat, which ended with 1: "),
        ("/bin/sh", "expected Python 3.9 or later, got /bin/sh, which ended with "),
    ],
)
def test_what_is_no_python_is_told_in_one_line(python: str, why: str) -> None:
    said = why_no_workers(python)
    assert said.startswith(f"engine.python: {why}")
    assert "\n" not in said


def test_a_file_that_is_no_program_is_told(tmp_path: Path) -> None:
    file = tmp_path / "python"
    file.write_bytes(b"\0\1\2")
    file.chmod(0o644)
    assert why_no_workers(str(file)) == f"engine.python: cannot start {file}: Permission denied"
    file.chmod(0o755)
    assert why_no_workers(str(file)) == f"engine.python: cannot start {file}: Exec format error"


def test_what_never_ends_is_told_and_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "python"
    file.write_text("#!/bin/sh\nexec /usr/bin/yes\n")
    file.chmod(0o755)
    monkeypatch.setattr("pilliond.ipc.worker_process.INTERPRETER_CHECK_S_MAX", 1.0)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert why_no_workers(str(file)) == f"engine.python: {file} did not answer within 1 s: is it Python?"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 50_000
    file.write_text("#!/bin/sh\nsleep 100 & sleep 100\n")
    before = set(psutil.pids())
    assert why_no_workers(str(file)) == f"engine.python: {file} did not answer within 1 s: is it Python?"
    wait_until(lambda: not sleeping(before))


def sleeping(before: set[int]) -> list[psutil.Process]:
    """The programs `sleep 100` that run since then."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        is_new = process.pid not in before and process.info["cmdline"] == ["sleep", "100"]
        if is_new and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_what_never_ends_ends_with_a_daemon_that_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "python"
    file.write_text("#!/bin/sh\nsleep 100 & sleep 100\n")
    file.chmod(0o755)
    before = set(psutil.pids())
    code = "import sys; from pilliond.ipc.worker_process import why_no_workers; why_no_workers(sys.argv[1])"
    daemon = subprocess.Popen([sys.executable, "-c", code, str(file)])
    wait_until(lambda: len(sleeping(before)) == 2)
    daemon.kill()
    daemon.wait()
    wait_until(lambda: not sleeping(before))


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.7", "3.8"])
def test_a_python_that_is_too_old_says_so(version: str) -> None:
    python = python_of(version)
    said = why_no_workers(python)
    assert said.startswith("engine.python: ")
    assert python in said
    assert "expected Python 3.9 or later" in said or f"it is Python {version}." in said
    assert "\n" not in said
    if version == "2.7":
        return
    # A worker says the same, where nobody has checked before.
    with Host(looking_up()) as host:
        attach(host, python)
        with pytest.raises(
            EngineError, match=rf"^engine\.python: it is Python {version}\.\d+, expected 3\.9 or later$"
        ):
            host.engine.wait_ready(WAIT_S_MAX)
        assert host.engine.is_refused


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A virtual environment of this Python, with nothing in it."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=WAIT_S_MAX)
    return str(folder / "bin" / "python")


def test_an_interpreter_without_numpy_says_so(bare_python: str) -> None:
    why = f"engine.python: {bare_python}: it is Python {platform.python_version()}, and a worker does not start there: "
    missing = f"No module named 'numpy': {bare_python} -m pip install numpy"
    assert why_no_workers(bare_python) == f"{why}ModuleNotFoundError: {missing}"
    with Host(looking_up()) as host:
        attach(host, bare_python)
        with pytest.raises(EngineError, match=f"a worker does not start on Python .*: {re.escape(missing)}$"):
            host.engine.wait_ready(WAIT_S_MAX)
        assert host.engine.is_refused


def test_a_worker_of_another_protocol_is_refused_in_one_line() -> None:
    policy = looking_up()
    packet = load_request(policy.spec, policy.parameters, policy.states, engine="onnx", rows_max=8).to_packet()
    for protocol in (PROTOCOL + 1, None):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs, sealed(policy.model) as model:
            process = subprocess.Popen(worker_command("", theirs.fileno()), pass_fds=[theirs.fileno()])
            theirs.close()
            # A later protocol may have fields that this worker does not know.
            send_packet(ours, {**packet, "protocol": protocol, "something": "new"}, [model])
            answer = receive_packet(ours, "failed", 0)
            assert answer is not None
            expected = f"the worker speaks protocol {PROTOCOL}, the daemon {protocol}: it was updated, restart it"
            assert answer[0]["message"] == expected
            assert process.wait(WAIT_S_MAX) == os.EX_DATAERR


def test_a_request_of_this_protocol_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = looking_up()
    request = load_request(policy.spec, policy.parameters, policy.states, engine="onnx", rows_max=8)
    assert LoadRequest.from_packet(request.to_packet()) == request
