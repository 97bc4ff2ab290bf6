"""The user at the other end of a Unix socket, as the kernel reports it, and whether that user is allowed."""

from __future__ import annotations

import os
import socket
import struct
from asyncio.trsock import TransportSocket
from typing import Final

from pilliond.limits import PEER_GROUPS_BYTES_MAX

_CREDENTIALS: Final = struct.Struct("iII")
_SO_PEERGROUPS: Final = 59
Connection = socket.socket | TransportSocket


def is_allowed(connection: Connection, group: int | None) -> bool:
    """Whether the peer is this process's own user, root, or a member of the group with the id `group`."""
    uid, gid = _credentials(connection)
    if uid in (os.getuid(), 0):
        return True
    if group is None:
        return False
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, PEER_GROUPS_BYTES_MAX)
    except OSError:
        # The user is in more groups than the buffer holds: then only the first one counts.
        groups = b""
    return group in (gid, *memoryview(groups).cast("I"))


def user_id(connection: Connection) -> int:
    """Returns the id of the peer's user."""
    return _credentials(connection)[0]


def _credentials(connection: Connection) -> tuple[int, int]:
    """The peer's user and first group at the time it connected."""
    _, uid, gid = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return uid, gid
