"""What a worker does to itself before it reads a model. Only the standard library is imported here.

seccomp and Landlock are missing: the standard library has neither, and other packages are not there in every interpreter
that a worker may run in (see "The worker" in docs/internals.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import resource
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_STDOUT: Final = 1
_STDERR: Final = 2
_CAPABILITY_VERSION_3: Final = 0x20080522


class _Fork(threading.local):
    """The fork that this thread is in."""

    is_watcher = False
    """Whether it is the one of `end_group_with_leader`, which outlives its parent."""


_fork = _Fork()


def die_with_parent(parent_pid: int) -> None:
    """Asks the kernel to end this process when the process `parent_pid`, which started it, ends, however that happens."""
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        # It had ended before the call: the kernel tells nobody a second time.
        sys.exit(os.EX_TEMPFAIL)


def confine() -> dict[str, str]:
    """Takes away what a worker does not need: core dumps, the network, capabilities, and gaining them again.

    Call it while the process has one thread: a user namespace is refused to others. Returns what was possible on this
    host, for operators: `network` is `none` or `host`, `privileges` is `none` or `kept`.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _allow_locking()
    network = _leave_the_network()
    privileges = _drop_capabilities()
    _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return {"network": network, "privileges": privileges}


def keep_to_the_log() -> None:
    """Lets what a policy prints go where the log goes, line by line: whatever started the daemon may read its output."""
    for stream in (sys.stdout, sys.stderr):
        # None where the daemon was started without them.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    # Last: where standard output is a file, reconfiguring asks for the position in it, and the log may have none.
    os.dup2(_STDERR, _STDOUT)


def cut_off_forks(descriptors: Sequence[int]) -> None:
    """Keeps these descriptors from the processes that a policy forks or starts; forked ones also end with their parent.

    Else the serving process would take the words of such a process for the worker's, or would not see that the worker is
    gone. Forks are those of Python code: what native code forks is not seen here.
    """
    prctl, parent = _libc().prctl, os.getpid()

    def cut_off() -> None:
        nonlocal parent
        if _fork.is_watcher:
            # It closes all descriptors itself.
            return
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in descriptors:
            os.dup2(nothing, descriptor, inheritable=False)
        os.close(nothing)
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            # It had ended before the call, as in `die_with_parent`.
            os._exit(os.EX_TEMPFAIL)
        parent = os.getpid()

    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    os.register_at_fork(after_in_child=cut_off)


def end_group_with_leader() -> None:
    """Ends the process group of this process when this process ends, however that happens, if it leads the group.

    A fork waits for that. So the programs that a package starts do not outlive their worker, not even where the daemon
    was killed and nobody else is left to end them; only those that made a group of their own do.
    """
    leader = os.getpid()
    if os.getpgrp() != leader or _fork_watcher():
        return
    try:
        # Nothing but the end of the leader, or of all.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        _close_all()
        _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        while os.getppid() == leader:
            signal.sigwait({signal.SIGTERM})
        os.killpg(leader, signal.SIGKILL)
    finally:
        os._exit(os.EX_OSERR)


def _fork_watcher() -> int:
    """Forks without what `cut_off_forks` does: the child would end with its parent, before it could end the group."""
    _fork.is_watcher = True
    try:
        return os.fork()
    finally:
        _fork.is_watcher = False


def _close_all() -> None:
    for name in os.listdir("/proc/self/fd"):
        # The descriptor of the list itself is closed already.
        with contextlib.suppress(OSError):
            os.close(int(name))


def limit_memory(bytes_max: int) -> None:
    """Limits the address space: allocations beyond it fail here, and no other process runs short. 0: no limit."""
    if bytes_max:
        resource.setrlimit(resource.RLIMIT_AS, (bytes_max, bytes_max))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _allow_locking() -> None:
    """Raises the limit of locked memory as far as it goes, before the capabilities are gone: the arena will be locked."""
    _, most = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (most, most))


def _leave_the_network() -> str:
    """Moves into a network namespace without interfaces: at once where it may, else inside a user namespace."""
    libc = _libc()
    if libc.unshare(_CLONE_NEWNET) == 0:
        return "none"
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return "host"
    # The process keeps its ids inside, so that files look as they did. Some hosts forbid that; the kernel goes by the
    # ids outside in any case.
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with contextlib.suppress(OSError):
            Path("/proc/self", name).write_text(text)
    return "none"


class _CapabilityHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


def _drop_capabilities() -> str:
    """Gives up every capability, of root too."""
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    return "none" if _libc().capset(ctypes.byref(header), nothing) == 0 else "kept"
