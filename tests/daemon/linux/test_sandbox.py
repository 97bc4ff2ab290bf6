"""What a child process does to itself before it works."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.harness import WAIT_S_MAX


def _child(parent_pid: int) -> int:
    script = "import sys; from pilliond.linux.sandbox import die_with_parent; die_with_parent(int(sys.argv[1]))"
    return subprocess.run([sys.executable, "-c", script, str(parent_pid)], timeout=WAIT_S_MAX, check=False).returncode


def test_a_child_whose_parent_died_before_it_could_ask_to_die_with_it_ends_at_once() -> None:
    assert _child(os.getpid()) == os.EX_OK
    assert _child(os.getpid() + 1) == os.EX_TEMPFAIL
