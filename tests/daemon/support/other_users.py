"""Other users of this host, as which only root can act."""

from __future__ import annotations

import grp
import os
import traceback
from collections.abc import Callable

OUTSIDER = 65534
"""The id of a user, and of its only group, that nothing here belongs to."""

GROUP = grp.getgrgid(1)
"""A group that every Linux has."""


def as_user(uid: int, gid: int, groups: list[int], act: Callable[[], str]) -> str:
    """What `act` gives in a child process that is this user; raises `AssertionError` where it raises."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _become_and_tell(uid, gid, groups, act, writing)
    os.close(writing)
    with os.fdopen(reading) as told:
        text = told.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, text
    return text


def _become_and_tell(uid: int, gid: int, groups: list[int], act: Callable[[], str], writing: int) -> None:
    """In the child: never returns."""
    code = 1
    try:
        os.setgroups(groups)
        os.setgid(gid)
        os.setuid(uid)
        os.write(writing, act().encode())
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, the parent must see it
        os.write(writing, traceback.format_exc().encode())
    finally:
        os._exit(code)
