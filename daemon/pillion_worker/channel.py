"""The worker channel: one JSON object per packet of a Unix SOCK_SEQPACKET socket, with descriptors beside it.

It carries the handshake alone. After that its end tells the serving process that the worker is gone.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pillion_worker.errors import ChannelError
from pillion_worker.limits import PACKET_BYTES_MAX

PROTOCOL: Final = 4
"""The version of what travels here and in the arena. A daemon whose files were replaced while it runs may start workers of
another one."""

LOAD: Final = "load"
LOADED: Final = "loaded"
FAILED: Final = "failed"
ARENA: Final = "arena"
READY: Final = "ready"


def send_packet(channel: socket.socket, packet: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Sends one packet, and copies of the descriptors. Raises `OSError` if the other end is closed."""
    data = json.dumps(packet).encode()
    if descriptors:
        socket.send_fds(channel, [data], list(descriptors))
    else:
        channel.send(data)


def receive_packet(channel: socket.socket, kind: str, descriptors_due: int) -> tuple[dict[str, Any], list[int]] | None:
    """Waits for a packet of this type, and returns it with its descriptors; None at the end of the channel.

    Raises `ChannelError` if it is another packet, or not as many descriptors come with it.
    """
    data, descriptors, flags, _ = socket.recv_fds(channel, PACKET_BYTES_MAX, descriptors_due)
    if not data:
        return None
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(descriptors) != descriptors_due:
            raise ChannelError(f"expected a whole packet and {descriptors_due} descriptors, got {len(descriptors)}")
        return parse_packet(data, kind), list(descriptors)
    except ChannelError:
        for descriptor in descriptors:
            os.close(descriptor)
        raise


def parse_packet(data: bytes, kind: str) -> dict[str, Any]:
    """Reads a packet of this type. Raises `ChannelError`."""
    try:
        packet = json.loads(data)
    except (ValueError, RecursionError):
        raise ChannelError("expected a JSON object, got other bytes") from None
    if not isinstance(packet, dict) or packet.get("type") != kind:
        raise ChannelError(f"expected a packet of type {kind!r}")
    return packet
