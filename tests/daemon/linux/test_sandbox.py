"""What a child process does to itself before it works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

from tests.harness import WAIT_S_MAX


def _child(parent_pid: int) -> int:
    script = "import sys; from pilliond.linux.sandbox import die_with_parent; die_with_parent(int(sys.argv[1]))"
    return subprocess.run([sys.executable, "-c", script, str(parent_pid)], timeout=WAIT_S_MAX, check=False).returncode


def test_a_child_whose_parent_died_before_it_could_ask_to_die_with_it_ends_at_once() -> None:
    assert _child(os.getpid()) == os.EX_OK
    assert _child(os.getpid() + 1) == os.EX_TEMPFAIL


_LEADER = """
import os, subprocess, sys, time
from pillion_worker.sandbox import cut_off_forks, end_group_with_leader
subprocess.Popen(["sleep", "1000"])
leader = os.getpid()

def wait_for_its_end():
    while os.getppid() == leader:
        time.sleep(0.001)

cut_off_forks([])
os.register_at_fork(after_in_child=wait_for_its_end)
end_group_with_leader()
"""


def test_a_group_ends_with_a_leader_that_ends_as_soon_as_it_has_forked() -> None:
    """Also in the worker of a Python policy, whose other forks end with it."""
    with subprocess.Popen([sys.executable, "-c", _LEADER], stdout=subprocess.PIPE, process_group=0) as leader:
        try:
            # What is left of the group holds the pipe open.
            assert leader.communicate(timeout=WAIT_S_MAX)[0] == b""
        finally:
            with suppress(ProcessLookupError):
                os.killpg(leader.pid, signal.SIGKILL)
