"""Process groups: a process that may start others leads a group of its own, and is killed together with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from typing import Final

_LOOK_S: Final = 0.002


def kill_group(leader: subprocess.Popen[bytes]) -> None:
    """Kills a process that leads a group, and all of that group. Harmless once the process was reaped: then it does nothing.

    While it was not, its number cannot be that of another group.
    """
    if leader.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader.pid, signal.SIGKILL)


def wait_unreaped(leader: subprocess.Popen[bytes], s_max: float) -> int | None:
    """Waits until a process has ended; returns its code as `Popen.returncode` has it, or None if it goes on after `s_max`.

    Does not reap it, so that `kill_group` still ends what it has started.
    """
    until_s = time.monotonic() + s_max
    while leader.returncode is None:
        ended = os.waitid(os.P_PID, leader.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if ended is not None:
            return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        if time.monotonic() >= until_s:
            return None
        time.sleep(_LOOK_S)
    return leader.returncode
