"""Packets of the lane and the layout of slots, computed from `protocol/README.md` alone: `lane.json`."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

from conversation_vectors import conversation
from example_values import DICTIONARY, DIGEST, DIGEST_HEX, EPOCH, SESSION, SMALL, TRACEPARENT
from pillion_protocol import Act, Action, Goodbye, Message, Spec, encode

# fmt: off
STEPS_BY_HAND: dict[str, tuple[str, Message]] = {
    "act, every integer as wide as it may become": (
        "059ccf0000000000001234cf0000000000000005cf000000000000000acf0000000000000001cd0002cf00000000000003e8c3c40090a000cf"
        + "00" * 8,
        Act(SESSION, EPOCH, 10, 1, 2, 1_000, True),
    ),
    "act that says when it was sent, every integer as wide as it may become": (
        "059dcf0000000000001234cf0000000000000005cf000000000000000acf0000000000000001cd0002cf00000000000003e8c3c40090a000cf"
        + "00" * 8 + "cf000000e8d4a51000",
        Act(SESSION, EPOCH, 10, 1, 2, 1_000, True, sent_ns=10**12),
    ),
    "action, every integer as wide as it may become": (
        "06 9f cf0000000000001234 cf0000000000000005 cf000000000000000a cf0000000000000001 cd0002 c420" + DIGEST_HEX
        + "cf000000e8d4a51000 cf0000000000000fa0 cf0000000000002710 cf0000000000004e20 cd0003 01 a0 00 cf0000000000000000",
        Action(SESSION, EPOCH, 10, 1, 2, DIGEST, 10**12, 4_000, 10_000, 20_000, 3, 1),
    ),
    "action of a batch that ran on a device, every integer as wide as it may become": (
        "06 dc0015 cf0000000000001234 cf0000000000000005 cf000000000000000a cf0000000000000001 cd0002 c420" + DIGEST_HEX
        + "cf000000e8d4a51000 cf0000000000000fa0 cf0000000000002710 cf0000000000004e20 cd0003 01 a0 00 cf0000000000000000"
        + "90 90 00 cf00000000000007d0 cf0000000000001770 cf00000000000003e8",
        Action(
            SESSION, EPOCH, 10, 1, 2, DIGEST, 10**12, 4_000, 10_000, 20_000, 3, 1,
            copy_in_ns=2_000, compute_ns=6_000, copy_out_ns=1_000,
        ),
    ),
}
BROKEN_PACKETS: list[tuple[str, str, int, str]] = [
    ("a single byte", "00", 0, "malformed"),
    ("one byte less than every packet has", "05 00 09 93 00 00 01", 120, "malformed"),
    ("a head longer than the packet", "ff ff", 498, "malformed"),
    ("a head of 127 bytes without the zeros behind it", "7f 00", 127, "malformed"),
    ("a head of 191 bytes without the zeros behind it", "bf 00", 192, "malformed"),
    ("one byte more than a packet may have", "05 00 09 93 00 00 01", 163_834, "too_large"),
]
# fmt: on
_A_STEP = "act, every integer as wide as it may become"


def lane() -> dict[str, Any]:
    """Returns whole packets with their frames, packets that hold no message, and the offsets of tensors in a slot."""
    pairs = [
        (f"conversation, line {number}", bytes.fromhex(line["frames"][0]), list(map(bytes.fromhex, line["frames"][1:])))
        for number, line in enumerate(conversation())
    ]
    numbers = [*[struct.pack("<4f", 1.0, -2.5, 0.5, 0.25)] * 2, *[struct.pack("<2q", 2, 3)] * 2]
    for (name, (data, _)), tensor in zip(STEPS_BY_HAND.items(), numbers, strict=True):
        pairs.append((name, bytes.fromhex(data), [tensor]))
    for length in (126, 127, 190, 191):
        reason = "x" * (length - 9)
        pairs.append((f"a head of {length} bytes", encode(Goodbye(SESSION, EPOCH, 14, reason)), []))
        assert len(pairs[-1][1]) == length
    seeds = list(range(2**62, 2**62 + 8))
    starts = encode(Act(SESSION, EPOCH, 11, 2, 8, 5_000, False, b"\x01" * 8, seeds, TRACEPARENT))
    pairs.append((f"an act whose head has {len(starts)} bytes", starts, [bytes(range(64))]))
    assert len(starts) > 126
    several = [bytes(range(8)), bytes(range(100, 104)), bytes(range(200, 206))]
    pairs.append(("two rows of three tensors", bytes.fromhex(STEPS_BY_HAND[_A_STEP][0]), several))
    return {
        "packets": [_packet_entry(*pair) for pair in pairs],
        "broken": [
            {"name": name, "bytes": bytes.fromhex(data).hex(), "zeros": zeros, "code": code}
            for name, data, zeros, code in BROKEN_PACKETS
        ],
        "slots": [
            _slot_entry(name, spec, rows)
            for name, spec, rows in (("small", SMALL, 1), ("dictionary", DICTIONARY, 1), ("dictionary", DICTIONARY, 3))
        ],
    }


def _packet_entry(name: str, head: bytes, tensors: Sequence[bytes]) -> dict[str, Any]:
    begin = max(128, math.ceil((2 + len(head)) / 64) * 64)
    packet = struct.pack("<H", len(head)) + head
    packet += bytes(begin - len(packet)) + b"".join(tensors)
    rows = 2 if len(tensors) > 1 else 1
    return {
        "name": name,
        "bytes": packet.hex(),
        "frames": [head.hex(), *(tensor.hex() for tensor in tensors)],
        "row_bytes": [len(tensor) // rows for tensor in tensors],
    }


def _slot_entry(name: str, spec: Spec, rows: int) -> dict[str, Any]:
    end = 64
    tensors: dict[str, list[dict[str, Any]]] = {}
    for kind, described in (("observation", spec.observation), ("outputs", spec.outputs)):
        tensors[kind] = []
        for tensor in described:
            size = tensor.row_bytes * rows
            tensors[kind].append({"name": tensor.name, "offset": end, "bytes": size})
            end += math.ceil(size / 64) * 64
    return {"spec": name, "rows": rows, **tensors, "slot_bytes": math.ceil(end / 4_096) * 4_096}
