"""How a worker ended, in words, with real processes."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from pilliond.ipc import worker_process as module
from pilliond.ipc.loss_cause import WORKER_ENDED
from pilliond.ipc.worker_process import with_exit_status
from pilliond.linux.process_group import kill_group
from tests.harness import wait_until


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("os._exit(0)", "its worker ended with exit code 0"),
        ("os._exit(4)", "its worker ended with exit code 4"),
        ("os.kill(os.getpid(), signal.SIGABRT)", "its worker was killed by SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 3)", "its worker was killed by signal 37"),
    ],
)
def test_a_worker_that_ended_is_named_with_its_exit_code_or_its_signal(program: str, words: str) -> None:
    with subprocess.Popen([sys.executable, "-c", f"import os, signal; {program}"]) as process:
        assert with_exit_status(WORKER_ENDED, process) == words
        assert with_exit_status("it made no progress", process) == "it made no progress"


def test_what_a_worker_that_ended_has_started_can_still_be_ended_with_it() -> None:
    program = "import os, subprocess; print(subprocess.Popen(['sleep', '100']).pid, flush=True); os._exit(4)"
    with subprocess.Popen([sys.executable, "-c", program], process_group=0, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        started = psutil.Process(int(process.stdout.readline()))
        assert with_exit_status(WORKER_ENDED, process) == "its worker ended with exit code 4"
        kill_group(process)
        wait_until(lambda: not started.is_running() or started.status() == psutil.STATUS_ZOMBIE)
        # Reaped meanwhile, it is still known how it ended.
        assert process.wait() == 4
        assert with_exit_status(WORKER_ENDED, process) == "its worker ended with exit code 4"


def test_one_that_only_closed_its_channel_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORKER_END_S_MAX", 0.01)
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        assert with_exit_status(WORKER_ENDED, process) == WORKER_ENDED
    assert with_exit_status(WORKER_ENDED, None) == WORKER_ENDED
