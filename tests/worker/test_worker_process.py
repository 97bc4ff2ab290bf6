"""A worker process is confined, and ends with those that need it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pillion_worker.channel import receive_packet, send_packet
from pillion_worker.errors import ChannelError
from pillion_worker.sandbox import confine
from pillion_worker.worker import measure
from pilliond.engine.worker import WorkerState
from tests.daemon.support.other_users import OUTSIDER, as_user
from tests.harness import WAIT_S_MAX, wait_until
from tests.worker.support.policies import summing
from tests.worker.support.processes import Host, spawn


def status(pid: int | str) -> dict[str, str]:
    """The fields of /proc/PID/status, see proc(5)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def interfaces(pid: int | str) -> set[str]:
    """The network interfaces that a process sees."""
    lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    return {line.partition(":")[0].strip() for line in lines}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user: run the tests as root")
def test_a_user_without_privileges_is_confined_too_and_keeps_its_files() -> None:
    def act() -> str:
        confined = confine()
        assert confined["network"] == "host" or interfaces("self") <= {"lo"}
        return f"{confined['privileges']} {status('self')['NoNewPrivs']} {os.access('/proc/self/status', os.R_OK)}"

    assert as_user(OUTSIDER, OUTSIDER, [], act) == "none 1 True"


def test_a_worker_has_no_privileges_no_core_dumps_and_no_network() -> None:
    with Host(summing(), memory_bytes_max=4_000_000_000) as host:
        host.start()
        pid = host.process.pid
        described = host.engine.describe()
        assert status(pid)["NoNewPrivs"] == "1"
        if described["privileges"] == "none":
            assert {status(pid)[name] for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {"0" * 16}
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert [line.split()[-3:-1] for line in limits.splitlines() if "core file" in line] == [["0", "0"]]
        assert [line.split()[-3:-1] for line in limits.splitlines() if "address space" in line] == [["4000000000"] * 2]
        if described["network"] == "none":
            assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
            assert interfaces(pid) <= {"lo"}
        assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0)


def test_the_pages_of_the_arena_are_locked_where_the_worker_says_so() -> None:
    with Host(summing()) as host:
        host.start()
        locked = int(status(host.process.pid)["VmLck"].split()[0])
        assert (locked > 0) == (host.engine.memory_kind == "locked")
        assert host.engine.memory_kind in ("locked", "pageable")


def test_a_worker_ends_when_the_serving_process_is_gone() -> None:
    for is_ready in (False, True):
        with Host(summing()) as host:
            host.attach()
            if is_ready:
                host.engine.wait_ready(WAIT_S_MAX)
            host.engine.close()
            assert host.process.wait(WAIT_S_MAX) == os.EX_OK


def test_a_worker_ends_before_a_load_when_the_channel_is_closed() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = spawn(theirs)
    ours.close()
    assert process.wait(WAIT_S_MAX) == os.EX_OK


def test_a_worker_dies_with_the_process_that_started_it() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent_code = """
import os, subprocess, sys
worker = subprocess.Popen([sys.executable, "-m", "pillion_worker", sys.argv[1], str(os.getpid())], pass_fds=[int(sys.argv[1])])
print(worker.pid, flush=True)
worker.wait()
"""
    with ours, theirs:
        command = [sys.executable, "-c", parent_code, str(theirs.fileno())]
        with subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            worker_pid = int(parent.stdout.readline())
            # It has asked the kernel twice when it waits for its load.
            wait_until(lambda: status(worker_pid).get("NoNewPrivs") == "1")
            parent.kill()
        wait_until(lambda: not Path(f"/proc/{worker_pid}").exists())


def test_a_worker_whose_parent_is_gone_does_not_start() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        command = [sys.executable, "-m", "pillion_worker", str(theirs.fileno()), str(os.getpid() + 1)]
        result = subprocess.run(command, pass_fds=[theirs.fileno()], timeout=WAIT_S_MAX, check=False)
    assert result.returncode == os.EX_TEMPFAIL


def test_a_worker_starts_where_output_is_a_file_and_the_log_is_not(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "pillion_worker", str(theirs.fileno()), str(os.getpid())]
    with open(tmp_path / "output", "w") as output, theirs:
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=output, stderr=subprocess.PIPE)
    ours.close()
    _, log = process.communicate(timeout=WAIT_S_MAX)
    assert (process.returncode, log) == (os.EX_OK, b"")


def test_the_channel_keeps_descriptors_and_refuses_other_packets() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = len(os.listdir("/proc/self/fd"))
    with ours, theirs:
        send_packet(ours, {"type": "arena", "x": 1}, [0, 1])
        packet = receive_packet(theirs, "arena", 2)
        assert packet is not None
        assert packet[0]["x"] == 1
        for descriptor in packet[1]:
            os.close(descriptor)
        for wrong in ({"type": "load"}, {}):
            send_packet(ours, wrong, [0])
            with pytest.raises(ChannelError):
                receive_packet(theirs, "arena", 1)
        send_packet(ours, {"type": "arena"}, [0, 1])
        with pytest.raises(ChannelError, match="expected a whole packet and 1 descriptors"):
            receive_packet(theirs, "arena", 1)
        ours.close()
        assert receive_packet(theirs, "arena", 1) is None
    assert len(os.listdir("/proc/self/fd")) == before - 2


def test_service_times_are_measured_with_a_bound_of_time_and_of_runs() -> None:
    now = 0
    runs = 0

    def run_of(ns: int) -> None:
        nonlocal now, runs
        now += ns
        runs += 1

    assert measure(lambda: run_of(10**12), clock=lambda: now) == [10**12, 10**12]
    assert runs == 1
    runs = 0
    assert measure(lambda: run_of(10_000 if runs else 90_000), clock=lambda: now) == [10_000, 10_000]
    assert runs == 200


HALF = """
import sys
if hasattr(sys, "half"):
    raise RuntimeError("a part of it is there already")
sys.half = True
raise {first}
"""


@pytest.mark.parametrize("arguments", [(), ("onnx",)])
@pytest.mark.parametrize(
    ("first", "reason"),
    [
        ("ImportError('libfoo.so.12: cannot open shared object file')", "ImportError: libfoo.so.12: cannot open"),
        ("ModuleNotFoundError('no', name='libfoo')", "its engine needs the package 'libfoo'"),
    ],
)
def test_a_library_that_cannot_be_imported_is_the_reason_also_if_it_was_tried_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], first: str, reason: str
) -> None:
    (tmp_path / "onnxruntime.py").write_text(HALF.format(first=first))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Host(summing()) as host:
        host.attach(*arguments)
        host.pump(lambda: host.engine.state is not WorkerState.LOADING)
        assert host.engine.reason.startswith(reason)
