"""What processes leave behind when they end is ended, too."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psutil

from pilliond.linux.orphans import no_orphans_left
from tests.harness import WAIT_S_MAX

_LEAVING = "sh -c 'sleep 100 & echo $!; exec sleep 100' & echo $!; setsid sleep 100 & echo $!; read line"
"""Starts a process with a child, and one in a session of its own, and ends when its input does."""


def test_what_ended_processes_have_left_is_killed_and_nothing_else() -> None:
    with subprocess.Popen(["sleep", "100"]) as own:
        try:
            with (
                no_orphans_left(),
                subprocess.Popen(["sh", "-c", _LEAVING], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as leaving,
            ):
                assert leaving.stdout is not None
                pids = [int(leaving.stdout.readline()) for _ in range(3)]
                leaving.kill()
                leaving.wait(WAIT_S_MAX)
                assert all(Path(f"/proc/{pid}").exists() for pid in pids)
            # Not even as a zombie.
            assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
            assert own.poll() is None
        finally:
            own.kill()
    # Later orphans are again those of the init process.
    command = ["sh", "-c", "sleep 100 > /dev/null & echo $!"]
    later = psutil.Process(int(subprocess.check_output(command, timeout=WAIT_S_MAX)))
    try:
        assert later.ppid() != os.getpid()
    finally:
        later.kill()
