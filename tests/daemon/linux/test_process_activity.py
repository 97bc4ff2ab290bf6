"""What the kernel reports of real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from pilliond.linux.process_activity import ProcessState, activity_of
from tests.harness import wait_until

Start = Callable[[str], subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python processes that end after the test."""
    started: list[subprocess.Popen[bytes]] = []

    def run(script: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", script]))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def wait_for(process: subprocess.Popen[bytes], state: ProcessState) -> None:
    wait_until(lambda: activity_of(process.pid).state is state)


def test_a_process_that_waits_sleeps_and_gets_no_cpu(start: Start) -> None:
    process = start("import time; time.sleep(300)")
    wait_for(process, ProcessState.SLEEPING)
    before = activity_of(process.pid)
    assert before.cpu_ns >= 0
    assert activity_of(process.pid) == before


def test_a_process_that_computes_is_runnable_and_its_cpu_time_grows(start: Start) -> None:
    process = start("while True: pass")
    wait_for(process, ProcessState.RUNNABLE)
    before_ns = activity_of(process.pid).cpu_ns
    wait_until(lambda: activity_of(process.pid).cpu_ns > before_ns)


def test_a_process_whose_other_thread_computes_is_runnable(start: Start) -> None:
    process = start(
        "import threading\nfinished = threading.Event()\n"
        "def compute():\n while True: sum(range(1000))\n"
        "threading.Thread(target=compute, daemon=True).start()\nfinished.wait()"
    )
    before_ns = activity_of(process.pid).cpu_ns
    wait_until(lambda: activity_of(process.pid).cpu_ns > before_ns + 200_000_000)
    assert {activity_of(process.pid).state for _ in range(100)} == {ProcessState.RUNNABLE}


def test_a_stopped_process_is_stopped_until_it_goes_on(start: Start) -> None:
    process = start("while True: pass")
    wait_for(process, ProcessState.RUNNABLE)
    process.send_signal(signal.SIGSTOP)
    wait_for(process, ProcessState.STOPPED)
    before = activity_of(process.pid)
    assert activity_of(process.pid) == before
    process.send_signal(signal.SIGCONT)
    wait_for(process, ProcessState.RUNNABLE)


def test_a_process_that_has_ended_or_never_was_has_ended(start: Start) -> None:
    process = start("")
    wait_for(process, ProcessState.ENDED)
    process.wait()
    assert activity_of(process.pid).state is ProcessState.ENDED


def test_a_name_with_parentheses_and_blanks_hides_nothing(start: Start) -> None:
    process = start("import time; open('/proc/self/comm', 'w').write(') R 1 (a'); time.sleep(300)")
    wait_for(process, ProcessState.SLEEPING)
    with open(f"/proc/{process.pid}/comm") as name:
        wait_until(lambda: os.pread(name.fileno(), 99, 0) == b") R 1 (a\n")
    wait_for(process, ProcessState.SLEEPING)
