"""Process groups: a process that may start others leads a group of its own, and is killed together with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess


def kill_group(leader: subprocess.Popen[bytes]) -> None:
    """Kills a process that leads a group, and all of that group. Harmless once the process was reaped: then it does nothing.

    While it was not, its number cannot be that of another group.
    """
    if leader.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader.pid, signal.SIGKILL)
