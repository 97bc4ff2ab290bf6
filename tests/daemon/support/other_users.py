"""Runs a function as another user of this host. Only root can."""

from __future__ import annotations

import grp
import os
import traceback
from collections.abc import Callable

OUTSIDER = 65534
"""The id of a user and a group that own nothing here."""

GROUP = grp.getgrgid(1)
"""A group that every Linux system has."""


def as_user(uid: int, gid: int, groups: list[int], act: Callable[[], str]) -> str:
    """Returns what `act` returns in a child process of this user. Raises `AssertionError` if it raises."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _run_in_child(uid, gid, groups, act, writing)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, text
    return text


def _run_in_child(uid: int, gid: int, groups: list[int], act: Callable[[], str], writing: int) -> None:
    """Runs `act` in the child and sends its result through the pipe. Never returns."""
    code = 1
    try:
        os.setgroups(groups)
        os.setgid(gid)
        os.setuid(uid)
        os.write(writing, act().encode())
        code = 0
    except BaseException:  # noqa: BLE001 - the parent raises it
        os.write(writing, traceback.format_exc().encode())
    finally:
        os._exit(code)
