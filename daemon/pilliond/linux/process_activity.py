"""What a process does right now, as the kernel reports it in `/proc`."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Final

import msgspec

_NS_PER_CLOCK_TICK: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_STATE: Final = 0
_USER_TIME: Final = 11
_SYSTEM_TIME: Final = 12
"""Fields of `/proc/PID/stat` behind the name, see proc_pid_stat(5)."""


class ProcessState(Enum):
    """The state of a process: of its first thread, unless another thread does more."""

    RUNNABLE = "R"
    """A thread runs, or waits for a CPU."""
    BLOCKED = "D"
    """A thread waits in the kernel and cannot be interrupted: for a disk, or for memory."""
    SLEEPING = "S"
    """All threads wait for something."""
    STOPPED = "T"
    """A signal or a debugger has stopped it."""
    ENDED = "Z"


class Activity(msgspec.Struct, frozen=True):
    """The state of a process and the CPU time that it got since its start, all threads together, in ns."""

    state: ProcessState
    cpu_ns: int


def activity_of(pid: int) -> Activity:
    """Returns what a process does; of one that is gone: that it has ended."""
    folder = Path(f"/proc/{pid}")
    try:
        first = _fields(folder)
        letters = {_fields(thread)[_STATE] for thread in (folder / "task").iterdir()}
    except (FileNotFoundError, ProcessLookupError):
        return Activity(ProcessState.ENDED, 0)
    cpu_ns = (int(first[_USER_TIME]) + int(first[_SYSTEM_TIME])) * _NS_PER_CLOCK_TICK
    return Activity(_state(first[_STATE], letters), cpu_ns)


def _state(first: str, letters: set[str]) -> ProcessState:
    if first in "Tt":
        return ProcessState.STOPPED
    if first in "ZXx":
        return ProcessState.ENDED
    # The first thread may wait for another one: for its share of a run, or for Python's lock.
    for state in (ProcessState.RUNNABLE, ProcessState.BLOCKED):
        if state.value in letters:
            return state
    return ProcessState.SLEEPING


def _fields(folder: Path) -> list[str]:
    # The name before them is in parentheses and may contain any of these characters.
    return (folder / "stat").read_text().rpartition(")")[2].split()
