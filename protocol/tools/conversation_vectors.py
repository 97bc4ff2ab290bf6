"""A whole session, frame by frame: `conversation.json`."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

from example_values import DIGEST, EPOCH, SESSION, SMALL, plain_fields
from pillion_protocol import (
    Act,
    Action,
    Begin,
    Begun,
    End,
    Ended,
    Error,
    Goodbye,
    Hello,
    Lease,
    Limits,
    Message,
    Ping,
    Pong,
    Welcome,
    encode,
    encode_spec,
)


def conversation() -> list[dict[str, Any]]:
    """Returns a whole session, frame by frame: what the client sends and what the daemon answers."""
    spec = encode_spec(SMALL)
    welcome = Welcome(
        SESSION, EPOCH, 7, 1, "pilliond", "small", "1.0.0", DIGEST, spec, hashlib.sha256(spec).digest(),
        Limits(256, 64, 65536), 5000, 600_000,
    )  # fmt: skip
    lease = Lease("1.0.0", DIGEST)
    one, two = struct.pack("<2f", 1.0, -2.5), struct.pack("<4f", 1.0, -2.5, 0.5, 0.25)

    def action(sequence: int, episode: int, rows: int, at: int) -> Action:
        return Action(SESSION, EPOCH, sequence, episode, rows, DIGEST, 10**9 + at, 4_000, 9_000, 15_000, rows, 3)

    lines: list[tuple[str, Message, list[bytes]]] = [
        ("client", Hello(0, 0, 7, 1, "vectors"), []),
        ("daemon", welcome, []),
        ("client", Begin(SESSION, EPOCH, 8, [7]), []),
        ("daemon", Begun(SESSION, EPOCH, 8, 1, [lease]), []),
        ("client", Act(SESSION, EPOCH, 9, 1, 1, 0, True), [one]),
        ("daemon", action(9, 1, 1, 0), [struct.pack("<q", 2)]),
        ("client", Begin(SESSION, EPOCH, 10, [8, 9]), []),
        ("daemon", Begun(SESSION, EPOCH, 10, 2, [lease]), []),
        ("client", Act(SESSION, EPOCH, 11, 2, 2, 5_000, False, b"\x00\x01", [10]), [two]),
        ("daemon", action(11, 2, 2, 1_000_000), [struct.pack("<2q", 0, 3)]),
        ("client", Act(SESSION, EPOCH, 12, 3, 1, 0, True), [one]),
        (
            "daemon",
            Error(SESSION, EPOCH, 12, "episode_unknown", "no such episode in this session",
                  "a handle that was begun and not ended", "3"),
            [],
        ),
        ("daemon", Ping(SESSION, EPOCH, 0), []),
        ("client", Pong(SESSION, EPOCH, 0), []),
        ("client", End(SESSION, EPOCH, 13, 1), []),
        ("daemon", Ended(SESSION, EPOCH, 13, 1, 1), []),
        ("client", Goodbye(SESSION, EPOCH, 14, "closed"), []),
        ("daemon", Goodbye(SESSION, EPOCH, 14, "bye"), []),
    ]  # fmt: skip
    return [
        {
            "from": sender,
            "type": type(message).__name__.lower(),
            "frames": [encode(message).hex(), *(tensor.hex() for tensor in frames)],
            "fields": plain_fields(message),
        }
        for sender, message, frames in lines
    ]
