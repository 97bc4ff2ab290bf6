"""Heads of messages, and heads that hold none: `messages.json` and `malformed.json`."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from example_values import DIGEST, DIGEST_HEX, EPOCH, SESSION, SMALL_BY_HAND, TRACEPARENT, plain_fields
from pillion_protocol import (
    Act,
    Action,
    Begin,
    Begun,
    End,
    Ended,
    Error,
    Fallback,
    Goodbye,
    Hello,
    Lease,
    Limits,
    Message,
    Ping,
    Pong,
    Welcome,
    encode,
)
from pillion_protocol.codec import STRUCTS

NESTING_MIN = 32
"""How deep arrays may be nested and every peer must still read them; the head's own array counts."""

# fmt: off
OPENING = "cd1234 05"                         # session 0x1234, epoch 5
BY_HAND: dict[str, tuple[str, Message]] = {
    "hello, only what every message has": ("01 93 000001", Hello(0, 0, 1)),
    "hello, every field": (
        "01 9a 00 00 07 01 a474657374 ac6c756e61722d6c616e646572 a83e3d312e302c3c32"
        "c420" + DIGEST_HEX + "c2 a57a65726f73",
        Hello(0, 0, 7, 1, "test", "lunar-lander", ">=1.0,<2", DIGEST, False, Fallback.ZEROS),
    ),
    "welcome": (
        "02 9e" + OPENING + "07 01 a87069 6c6c696f6e64 ac6c756e61722d6c616e646572 a5312e302e30"
        + "c420" + DIGEST_HEX + "c44e" + SMALL_BY_HAND
        + "c420" + hashlib.sha256(bytes.fromhex(SMALL_BY_HAND)).hexdigest()
        + "93 cd0100 40 ce00010000 cd1388 ce000927c0 a56578616374",
        Welcome(
            SESSION, EPOCH, 7, 1, "pilliond", "lunar-lander", "1.0.0", DIGEST, bytes.fromhex(SMALL_BY_HAND),
            hashlib.sha256(bytes.fromhex(SMALL_BY_HAND)).digest(), Limits(256, 64, 65536), 5000, 600_000, "exact",
        ),
    ),
    "welcome, without a certificate": (
        "02 9d" + OPENING + "07 01 a87069 6c6c696f6e64 ac6c756e61722d6c616e646572 a5312e302e30"
        "c420" + DIGEST_HEX + "c44e" + SMALL_BY_HAND
        + "c420" + hashlib.sha256(bytes.fromhex(SMALL_BY_HAND)).hexdigest()
        + "93 cd0100 40 ce00010000 cd1388 ce000927c0",
        Welcome(
            SESSION, EPOCH, 7, 1, "pilliond", "lunar-lander", "1.0.0", DIGEST, bytes.fromhex(SMALL_BY_HAND),
            hashlib.sha256(bytes.fromhex(SMALL_BY_HAND)).digest(), Limits(256, 64, 65536), 5000, 600_000,
        ),
    ),
    "begin, three rows": ("03 95" + OPENING + "08 93070809 c2", Begin(SESSION, EPOCH, 8, [7, 8, 9])),
    "begun, one lease for every row": (
        "04 97" + OPENING + "08 01 9192a5312e302e30c420" + DIGEST_HEX + "90 00",
        Begun(SESSION, EPOCH, 8, 1, [Lease("1.0.0", DIGEST)]),
    ),
    "act, only what it must have": ("05 94" + OPENING + "09 01", Act(SESSION, EPOCH, 9, 1)),
    "act, three rows of which two begin": (
        "05 9d" + OPENING + "0a 01 03 cd03e8 c3 c403010001 920b0c a0 00 00 cf000000e8d4a51000",
        Act(SESSION, EPOCH, 10, 1, 3, 1000, True, b"\x01\x00\x01", [11, 12], sent_ns=10**12),
    ),
    "act, without the time when it was sent": (
        "05 9c" + OPENING + "0a 01 03 cd03e8 c3 c403010001 920b0c a0 00 00",
        Act(SESSION, EPOCH, 10, 1, 3, 1000, True, b"\x01\x00\x01", [11, 12]),
    ),
    "action": (
        "06 dc0015" + OPENING + "0a 01 03 c420" + DIGEST_HEX
        + "cf000000e8d4a51000 cd0fa0 cd2710 cd4e20 03 01 a0 00 00 90 90 00 00 00 00",
        Action(SESSION, EPOCH, 10, 1, 3, DIGEST, 10**12, 4000, 10_000, 20_000, 3, 1),
    ),
    "action, late": (
        "06 dc0015" + OPENING + "0a 01 03 c420" + DIGEST_HEX
        + "cf000000e8d4a51000 cd0fa0 cd2710 cd4e20 03 01 a0 00 00 90 90 cd07d0 00 00 00",
        Action(SESSION, EPOCH, 10, 1, 3, DIGEST, 10**12, 4000, 10_000, 20_000, 3, 1, late_us=2000),
    ),
    "action, of a batch that ran on a device": (
        "06 dc0015" + OPENING + "0a 01 03 c420" + DIGEST_HEX
        + "cf000000e8d4a51000 cd0fa0 cd2710 cd4e20 03 01 a0 00 00 90 90 00 cd07d0 cd1770 cd03e8",
        Action(
            SESSION, EPOCH, 10, 1, 3, DIGEST, 10**12, 4000, 10_000, 20_000, 3, 1,
            copy_in_ns=2_000, compute_ns=6_000, copy_out_ns=1_000,
        ),
    ),
    "action, without the times of a device": (
        "06 dc0012" + OPENING + "0a 01 03 c420" + DIGEST_HEX
        + "cf000000e8d4a51000 cd0fa0 cd2710 cd4e20 03 01 a0 00 00 90 90 cd07d0",
        Action(SESSION, EPOCH, 10, 1, 3, DIGEST, 10**12, 4000, 10_000, 20_000, 3, 1, late_us=2000),
    ),
    "action, with leases and without late_us": (
        "06 dc0011" + OPENING + "0a 01 03 c420" + DIGEST_HEX
        + "cf000000e8d4a51000 cd0fa0 cd2710 cd4e20 03 01 a0 00 00 90 90",
        Action(SESSION, EPOCH, 10, 1, 3, DIGEST, 10**12, 4000, 10_000, 20_000, 3, 1),
    ),
    "action, without the leases that none need name": (
        "06 9f" + OPENING + "0a 01 03 c420" + DIGEST_HEX
        + "cf000000e8d4a51000 cd0fa0 cd2710 cd4e20 03 01 a0 00 00",
        Action(SESSION, EPOCH, 10, 1, 3, DIGEST, 10**12, 4000, 10_000, 20_000, 3, 1),
    ),
    "action, a fallback": (
        "06 dc0015" + OPENING + "0b 01 01 c420" + DIGEST_HEX
        + "01 02 03 03 00 00 a57a65726f73 00 00 90 90 00 00 00 00",
        Action(SESSION, EPOCH, 11, 1, 1, DIGEST, 1, 2, 3, 3, 0, 0, "zeros"),
    ),
    "end": ("07 94" + OPENING + "0c 01", End(SESSION, EPOCH, 12, 1)),
    "ended": ("08 95" + OPENING + "0c 01 02", Ended(SESSION, EPOCH, 12, 1, 2)),
    "ping": ("09 93" + OPENING + "0d", Ping(SESSION, EPOCH, 13)),
    "ping, unasked": ("09 93" + OPENING + "00", Ping(SESSION, EPOCH, 0)),
    "ping, integers wider than they need be": (
        "09 dc0003 cf0000000000001234 d300000000 00000005 cc0d", Ping(SESSION, EPOCH, 13)
    ),
    "ping, a field from the future as deep as must be read": (
        "09 94" + OPENING + "0d" + "91" * (NESTING_MIN - 2) + "90", Ping(SESSION, EPOCH, 13)
    ),
    "pong": ("0a 93" + OPENING + "0d", Pong(SESSION, EPOCH, 13)),
    "error, without expected and actual": (
        "0b 95" + OPENING + "0a a96d616c666f726d6564 a3626164", Error(SESSION, EPOCH, 10, "malformed", "bad")
    ),
    "error, a code from the future": (
        "0b 97" + OPENING + "0a a56e65776572 a0 a131 a132", Error(SESSION, EPOCH, 10, "newer", "", "1", "2")
    ),
    "goodbye, without a reason": ("0c 93" + OPENING + "0e", Goodbye(SESSION, EPOCH, 14)),
    "goodbye, the daemon's": ("0c 94" + OPENING + "00 a3627965", Goodbye(SESSION, EPOCH, 0, "bye")),
    "begin, a field from the future": (
        "03 96" + OPENING + "08 9107 c2 a6667574757265", Begin(SESSION, EPOCH, 8, [7])
    ),
}
# fmt: on
BY_ENCODER: dict[str, Message] = {
    "hello, the defaults spelled out": Hello(0, 0, 1),
    "begin, the largest seed": Begin(SESSION, EPOCH, 8, [2**63 - 1]),
    "begin, 17 rows": Begin(SESSION, EPOCH, 8, list(range(17))),
    "begun, two versions": Begun(
        SESSION, EPOCH, 8, 2, [Lease("1.0.0", DIGEST), Lease("2.0.0-rc.1", DIGEST[::-1])], [0, 1, 1]
    ),
    "act, every field": Act(SESSION, EPOCH, 10, 1, 2, 5_000, False, b"\x00\x01", [7], TRACEPARENT, 0, 0, 123_456_789),
    "begin, with slots": Begin(SESSION, EPOCH, 8, [7], True),
    "begun, with slots": Begun(SESSION, EPOCH, 8, 1, [Lease("1.0.0", DIGEST)], [], 2),
    "act, in a slot": Act(SESSION, EPOCH, 10, 1, 1, 0, True, b"", [], "", 2, 77),
    "act, in a slot, with a budget": Act(SESSION, EPOCH, 10, 1, 1, 5_000, True, b"", [], "", 2, 77, 123_456_789),
    "action, in a slot": Action(SESSION, EPOCH, 10, 1, 1, DIGEST, 123, 9, 18, 200, 1, 3, "", 2, 77),
    "action, rows of two versions": Action(
        SESSION,
        EPOCH,
        10,
        1,
        3,
        DIGEST,
        123,
        9,
        18,
        200,
        3,
        3,
        "",
        0,
        0,
        [Lease("1.0.0", DIGEST), Lease("1.1.0", DIGEST[::-1])],
        [0, 1, 0],
    ),
    "action, a batch of many": Action(SESSION, EPOCH, 10, 1, 2, DIGEST, 123_456_789_012, 900, 1_800, 20_000, 256, 2),
    "error, every field": Error(SESSION, EPOCH, 10, "rows_mismatch", "wrong number of rows", "2", "3"),
    "error, to a hello": Error(0, 0, 7, "policy_not_found", "this policy is not served here", "a", "b"),
    "goodbye, with a reason in Unicode": Goodbye(SESSION, EPOCH, 14, "à bientôt"),
}

# fmt: off
MALFORMED: list[tuple[str, str, str]] = [
    ("nothing at all", "", "malformed"),
    ("a type byte and no body", "09", "malformed"),
    ("type byte 0", "0093000001", "unknown_message"),
    ("type byte 13", "0d93000001", "unknown_message"),
    ("type byte 255", "ff93000001", "unknown_message"),
    ("the body is a map", "0983a773657373696f6e00a565706f636800a873657175656e636500", "malformed"),
    ("the body is nil", "09c0", "malformed"),
    ("fewer fields than have no default", "09920001", "malformed"),
    ("the array ends too soon", "0993cd1234", "malformed"),
    ("an integer ends too soon", "0993cd12", "malformed"),
    ("bytes after the array", "099300000100", "malformed"),
    ("two messages in one head", "0993000001 0993000002", "malformed"),
    ("a negative session", "0993ff0001", "malformed"),
    ("a sequence of 2^63", "09930000cf8000000000000000", "malformed"),
    ("a sequence that is a float", "09930000cb3ff0000000000000", "malformed"),
    ("a sequence that is true", "09930000c3", "malformed"),
    ("a sequence that is a string", "09930000a131", "malformed"),
    ("a sequence that is nil", "09930000c0", "malformed"),
    ("the never used byte c1", "09c1", "malformed"),
    ("begin without seeds", "0393000001", "malformed"),
    ("seeds that are no array", "039400000107", "malformed"),
    ("a negative seed", "039400000191ff", "malformed"),
    ("episode_start as a string", "0598000001010100c2a101", "malformed"),
    ("deterministic as an integer", "059700000101010001", "malformed"),
    ("a time of sending that is a float", "059d0000010101" + "00c2c40090a00000" + "cb3ff0000000000000", "malformed"),
    ("a traceparent of 65 characters", "059a000001010100c2c40090d941" + "61" * 65, "malformed"),
    ("client_name as binary", "019500000101c40161", "malformed"),
    ("client_name that is not UTF-8", "019500000101a1ff", "malformed"),
    ("client_name with half a surrogate pair", "019500000101a3eda080", "malformed"),
    ("a welcome, which a client does not send, that cannot be read", "0293000001", "malformed"),
    ("client_name of 257 characters", "019500000101da0101" + "61" * 257, "malformed"),
    ("spec_hash of 33 bytes", "019800000101a0a0a0c421" + "00" * 33, "malformed"),
    ("a fallback that there is not", "019a00000101a0a0a0c400c3a3617065", "malformed"),
    ("a digest of 31 bytes", "04950000010191 92a5312e302e30c41f" + "00" * 31, "malformed"),
    ("an array that promises 2^32 - 1 fields", "09ddffffffff", "malformed"),
]
# fmt: on


def messages() -> list[dict[str, Any]]:
    """Returns every head with its fields; `reencodes` is true if an encoder that writes every field writes these bytes."""
    listed = [_entry(name, bytes.fromhex(data), message, True) for name, (data, message) in BY_HAND.items()]
    listed += [_entry(name, encode(message), message, False) for name, message in BY_ENCODER.items()]
    for message in (*(message for _, message in BY_HAND.values()), *BY_ENCODER.values()):
        kind = type(message).__name__.lower()
        if not any(entry["name"] == f"{kind}, two fields from the future" for entry in listed):
            fields = [*msgspec.structs.asdict(message).values(), "future", {"a": [1]}]
            data = encode(message)[:1] + msgspec.msgpack.encode(fields)
            listed.append(_entry(f"{kind}, two fields from the future", data, message, False))
    return listed


def malformed() -> list[dict[str, str]]:
    """Returns heads that hold no message, each with the code of the error that answers it."""
    return [{"name": name, "bytes": bytes.fromhex(data).hex(), "code": code} for name, data, code in MALFORMED]


def _entry(name: str, data: bytes, message: Message, by_hand: bool) -> dict[str, Any]:
    return {
        "name": name,
        "type": type(message).__name__.lower(),
        "by_hand": by_hand,
        "reencodes": encode(message) == data,
        "bytes": data.hex(),
        "fields": plain_fields(message),
    }


assert {struct.__name__.lower() for struct in STRUCTS.values()} == {
    type(message).__name__.lower() for _, message in BY_HAND.values()
}
