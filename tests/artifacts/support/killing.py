"""Kills a change of the store at each of its steps: ptrace(2) stops it at every system call, SIGKILL ends it."""

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


def killed_after(changes: int, act: Callable[[], None], look: Callable[[], object]) -> bool:
    """Runs `act` in a child that dies as it enters a system call: the first one since `look` gave something new for the
    `changes`-th time. False where it ended before.

    The call itself is not made. What a kill leaves is what lies there as the call is entered, hence one kill stands for
    those at all calls between two changes. Raises `AssertionError` where the act failed by itself.
    """
    child = _Traced(act)
    seen = look()
    while child.enters_a_call():
        result = look()
        changes -= result != seen
        seen = result
        if changes <= 0:
            child.kill()
            return True
    return False


def stopped_at(calls: int, act: Callable[[], None], meanwhile: Callable[[], None]) -> bool:
    """Runs `act` in a child that stands still as it enters its `calls`-th system call until `meanwhile` has returned, and
    then goes on. False where it ended before.

    Raises `AssertionError` where the act failed.
    """
    child = _Traced(act)
    reached = False
    while child.enters_a_call():
        if calls == 0:
            try:
                meanwhile()
            except BaseException:
                child.kill()
                raise
            reached = True
        calls -= 1
    return reached


def stopped_at_each(act: Callable[[], None], meanwhile: Callable[[], None]) -> None:
    """Runs `act` in a child that stands still as it enters each of its system calls until `meanwhile` has returned."""
    child = _Traced(act)
    while child.enters_a_call():
        try:
            meanwhile()
        except BaseException:
            child.kill()
            raise


class _Traced:
    """An act in a child that stands still as it enters a call."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._child = os.fork()
        self._is_inside = False
        if self._child == 0:
            _run_traced(act)
        _, status = os.waitpid(self._child, 0)
        if not os.WIFSTOPPED(status):
            raise TracingRefusedError(f"ptrace: {status}")
        _ptrace(_SET_OPTIONS, self._child, _EXIT_KILL | _TRACE_SYSGOOD)

    def enters_a_call(self) -> bool:
        """Continues the child until its next system call. Returns False if it ends before."""
        deliver = 0
        while True:
            _ptrace(_SYSCALL, self._child, deliver)
            _, status = os.waitpid(self._child, 0)
            if os.WIFEXITED(status):
                assert os.WEXITSTATUS(status) == 0, "the act failed by itself"
                return False
            assert os.WIFSTOPPED(status), status
            is_call = os.WSTOPSIG(status) == _SYSCALL_STOP
            deliver = 0 if is_call else os.WSTOPSIG(status)
            if is_call:
                self._is_inside = not self._is_inside
                if self._is_inside:
                    return True

    def kill(self) -> None:
        os.kill(self._child, signal.SIGKILL)
        _, status = os.waitpid(self._child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL


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
