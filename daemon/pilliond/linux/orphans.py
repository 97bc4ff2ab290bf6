"""Orphans: processes whose parent has ended. Whoever kills a process that starts others has to end those, too.

A process group would do for that, but a process is in one group only: what a staging process starts stays in its group, so
that a pause stops all of it.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psutil

_PR_SET_CHILD_SUBREAPER: Final = 36


@contextmanager
def no_orphans_left() -> Iterator[None]:
    """Kills what the processes that are started and ended meanwhile leave behind, whatever group it is in.

    Orphans become children of this process meanwhile, instead of those of the init process. All children that are there at
    the end and were not at the beginning are killed and reaped: end your own ones before, and start none in other threads.
    """
    before = _children()
    _adopt_orphans(True)
    try:
        yield
    finally:
        # The children of a child that is killed come here in turn.
        while left := _children() - before:
            for pid in left:
                # It is not reaped yet, so that its number is still its own.
                os.kill(pid, signal.SIGKILL)
            for pid in left:
                os.waitpid(pid, 0)
        _adopt_orphans(False)


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def _adopt_orphans(adopts: bool) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, int(adopts), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
