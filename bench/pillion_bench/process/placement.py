"""The CPUs that server and client run on. They matter more than any code, so every figure names them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pillion_bench.errors import PlacementError

CpuSet = frozenset[int]


class Placement(msgspec.Struct, frozen=True):
    """The CPUs of server and client; None: any, as the kernel decides."""

    name: str
    server: CpuSet | None
    client: CpuSet | None

    def __str__(self) -> str:
        if self.server is None and self.client is None:
            return f"{self.name} (not pinned)"
        return f"{self.name} (server on cpu {_text(self.server)}, client on cpu {_text(self.client)})"

    def with_worker(self) -> str:
        """Describes the placement where the clients are beside the serving process, and the client's CPUs are the worker's."""
        if self.server is None and self.client is None:
            return f"{self.name} (not pinned)"
        server, worker = _text(self.server), _text(self.client)
        return f"{self.name} (client and serving process on cpu {server}, worker on cpu {worker})"

    def for_foreign_daemon(self) -> Placement:
        """Returns the placement for a daemon that the bench did not start: only the client is pinned."""
        return Placement(f"{self.name}, client only", None, self.client)


def parse_placement(text: str, allowed: CpuSet | None = None) -> Placement:
    """Returns the placement that `--pin` names: `two-cores`, `one-core`, `none`, `SERVER:CLIENT`, or "" for the default.

    `allowed` has the CPUs that may be used, by default those of this process. Raises `PlacementError`.
    """
    cpus = allowed or frozenset(os.sched_getaffinity(0))
    first, second = _two_cores(cpus)
    match text or ("one-core" if second is None else "two-cores"):
        case "none":
            return Placement("none", None, None)
        case "one-core":
            return Placement("one-core", frozenset({first}), frozenset({first}))
        case "two-cores":
            if second is None:
                raise PlacementError("--pin two-cores: this process may run on one cpu only; use one-core or none")
            return Placement("two-cores", frozenset({first}), frozenset({second}))
        case explicit:
            return _explicit(explicit, cpus)


def spare_cpus(placement: Placement, allowed: CpuSet | None = None) -> CpuSet | None:
    """Returns the CPUs for a process that is neither server nor client: separate from both, else the client's."""
    if placement.server is None or placement.client is None:
        return None
    cpus = allowed or frozenset(os.sched_getaffinity(0))
    return (cpus - placement.server - placement.client) or placement.client


@contextmanager
def pinned(cpus: CpuSet | None) -> Iterator[None]:
    """Pins this thread to `cpus` inside the block, so that a process started there inherits them."""
    if cpus is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _explicit(text: str, allowed: CpuSet) -> Placement:
    server_text, separator, client_text = text.partition(":")
    try:
        server, client = _cpus(server_text), _cpus(client_text)
    except ValueError:
        separator = ""
    if not separator:
        raise PlacementError(
            f"--pin: expected two-cores, one-core, none or SERVER:CLIENT cpus such as 0:1 or 0-1:2,3, got {text!r}"
        )
    if not server | client <= allowed:
        raise PlacementError(f"--pin {text}: this process may run on cpu {_text(allowed)}")
    return Placement(text, server, client)


def _cpus(text: str) -> CpuSet:
    """Parses `0,2-3`; raises `ValueError`."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    if not found:
        raise ValueError(text)
    return frozenset(found)


def cpu_list(cpus: CpuSet) -> str:
    """Returns `cpus` as settings write them: `0,2`."""
    return ",".join(str(cpu) for cpu in sorted(cpus))


def _text(cpus: CpuSet | None) -> str:
    return "any" if cpus is None else cpu_list(cpus)


def _two_cores(cpus: CpuSet) -> tuple[int, int | None]:
    """Returns two of `cpus` on different cores, else any two; the second is None if there is only one."""
    first, *others = sorted(cpus)
    siblings = _siblings(first)
    apart = [cpu for cpu in others if cpu not in siblings]
    return first, next(iter(apart or others), None)


def _siblings(cpu: int) -> CpuSet:
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return _cpus(path.read_text().strip())
    except (OSError, ValueError):
        return frozenset({cpu})
