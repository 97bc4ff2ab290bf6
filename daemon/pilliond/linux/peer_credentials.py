"""Whose process is at the other end of a Unix socket, as the kernel says, and whether that user is let in."""

from __future__ import annotations

import os
import socket
import struct
from asyncio.trsock import TransportSocket
from typing import Final

_CREDENTIALS: Final = struct.Struct("iII")
_SO_PEERGROUPS: Final = 59
_GROUPS_BYTES_MAX: Final = 1_024
"""What Python's `getsockopt` takes at most: 256 groups."""

Connection = socket.socket | TransportSocket


def is_let_in(connection: Connection, group: int | None) -> bool:
    """Whether the peer is this process's own user, root, or a member of the group with the id `group`."""
    uid, gid = _credentials(connection)
    if uid in (os.getuid(), 0):
        return True
    if group is None:
        return False
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES_MAX)
    except OSError:
        # It is in more groups than can be asked for: only its first one counts.
        groups = b""
    return group in (gid, *memoryview(groups).cast("I"))


def user_id(connection: Connection) -> int:
    """The id of the peer's user."""
    return _credentials(connection)[0]


def _credentials(connection: Connection) -> tuple[int, int]:
    """User and first group, as they were when the peer connected."""
    _, uid, gid = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return uid, gid
