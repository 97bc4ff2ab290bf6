"""Receives a message that brings descriptors (`SCM_RIGHTS`): with all of them, or with none."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import TypeVar

import msgspec

from pilliond.limits import CHANNEL_MESSAGE_BYTES_MAX

M = TypeVar("M")


def receive(end: socket.socket, decode: Callable[[bytes], M], descriptors_max: int) -> tuple[M | None, list[int]]:
    """Returns the next message (None if the other process is gone) and its descriptors, which the caller owns.

    They are all that it brought, or none: if the kernel drops some, because more came than `descriptors_max` or this
    process has no room for them, the others are closed. They are not sent again, so what the message asks for fails.
    Raises `msgspec.MsgspecError` if it cannot be read, and `OSError`.
    """
    data, descriptors, flags, _ = socket.recv_fds(end, CHANNEL_MESSAGE_BYTES_MAX, descriptors_max)
    try:
        message = decode(data) if data else None
    except msgspec.MsgspecError:
        close_all(descriptors)
        raise
    if flags & socket.MSG_CTRUNC:
        close_all(descriptors)
    return message, descriptors


def close_all(descriptors: list[int]) -> None:
    """Closes them, and empties the list."""
    while descriptors:
        os.close(descriptors.pop())
