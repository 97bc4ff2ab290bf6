"""Kills an act on the store at every system call it makes, one after the other: ptrace(2) stops it there, SIGKILL ends it."""

from __future__ import annotations

import ctypes
import os
import signal
import traceback
from collections.abc import Callable

_TRACE_ME, _SYSCALL, _SET_OPTIONS = 0, 24, 0x4200
_EXIT_KILL, _TRACE_SYSGOOD = 1 << 20, 1
_SYSCALL_STOP = signal.SIGTRAP | 0x80

_libc = ctypes.CDLL(None, use_errno=True)


class TracingRefusedError(Exception):
    """This process may not trace its own children."""


def killed_at(call: int, act: Callable[[], None]) -> bool:
    """Runs `act` in a child that dies as it enters its `call`-th system call; False where it ended before.

    The call itself is not made. Raises `AssertionError` where the act failed by itself.
    """
    child = os.fork()
    if child == 0:
        _run_traced(act)
    _, status = os.waitpid(child, 0)
    if not os.WIFSTOPPED(status):
        raise TracingRefusedError(f"ptrace: {status}")
    _ptrace(_SET_OPTIONS, child, _EXIT_KILL | _TRACE_SYSGOOD)
    return _follow(child, call)


def _follow(child: int, call: int) -> bool:
    entered = 0
    entering = False
    deliver = 0
    while True:
        _ptrace(_SYSCALL, child, deliver)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, "the act failed by itself"
            return False
        assert os.WIFSTOPPED(status), status
        is_call = os.WSTOPSIG(status) == _SYSCALL_STOP
        deliver = 0 if is_call else os.WSTOPSIG(status)
        if is_call:
            entering = not entering
            entered += entering
        if entered == call:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert os.WTERMSIG(status) == signal.SIGKILL
            return True


def _run_traced(act: Callable[[], None]) -> None:
    """In the child: never returns."""
    code = 1
    try:
        if _libc.ptrace(_TRACE_ME, 0, 0, 0) != 0:
            os._exit(2)
        os.kill(os.getpid(), signal.SIGSTOP)
        act()
        code = 0
    except Exception:  # noqa: BLE001 - whatever it is, the parent must see it
        traceback.print_exc()
    finally:
        os._exit(code)


def _ptrace(request: int, child: int, data: int) -> None:
    if _libc.ptrace(request, child, ctypes.c_void_p(0), ctypes.c_void_p(data)) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
