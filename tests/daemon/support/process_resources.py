"""What a process holds and uses, as /proc shows it: see proc(5)."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

_CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Returns the CPU time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS_PER_S


def open_descriptors(pid: int) -> int:
    """Returns the number of descriptors that a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def slot_regions(pid: int) -> int:
    """Returns how many slot regions a process has open, plus how many it has mapped."""
    folder = Path(f"/proc/{pid}")
    regions = (folder / "maps").read_text().count("pillion-slots")
    for entry in (folder / "fd").iterdir():
        # The process runs on: a descriptor that was listed may be closed by now.
        with suppress(FileNotFoundError):
            regions += "pillion-slots" in os.readlink(entry)
    return regions


def children_running(pid: int, module: str) -> list[psutil.Process]:
    """Returns the children of a process that run a Python module; not those that have ended and wait to be reaped."""
    found = []
    for child in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):
            if module in child.cmdline():
                found.append(child)
    return found


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Leaves this process room for a few descriptors more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
