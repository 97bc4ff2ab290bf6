"""Makes the test vectors in `protocol/vectors/`: bytes of the wire with their meaning.

    python protocol/make_vectors.py            writes the files
    python protocol/make_vectors.py --check    says which of them differ; exit code 1 where one does

Bytes marked `by_hand` were written down from the specification, not by our encoder, so that the encoder can be wrong.
The sampling vectors are computed here in plain integers and `math`, not by the daemon's code.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

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
    Spec,
    TensorSpec,
    Welcome,
    encode,
    encode_spec,
)
from pillion_protocol.codec import STRUCTS

FOLDER = Path(__file__).parent / "vectors"

SESSION = 0x1234
EPOCH = 5
DIGEST = bytes(range(32))
DIGEST_HEX = DIGEST.hex()
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
JSON_INTEGER_MAX = 2**53
NESTING_MIN = 32
"""Arrays within arrays that every peer must read, the head's own counted."""

LUNAR_LANDER = Spec(
    observation=[
        TensorSpec(
            "observation",
            "float32",
            [8],
            "Box",
            [-2.5, -2.5, -10.0, -10.0, -6.2831855, -10.0, 0.0, 0.0],
            [2.5, 2.5, 10.0, 10.0, 6.2831855, 10.0, 1.0, 1.0],
        )
    ],
    outputs=[TensorSpec("action", "int64", [], "Discrete", [0.0], [3.0])],
)
SMALL = Spec(
    observation=[TensorSpec("observation", "float32", [2])],
    outputs=[TensorSpec("action", "int64", [], "Discrete", [0.0], [3.0])],
)
DICTIONARY = Spec(
    observation=[
        TensorSpec("camera", "uint8", [4, 84, 84], "Box", [0.0], [255.0]),
        TensorSpec("lidar", "float32", [16], finite=False),
        TensorSpec("gear", "int64", [], "Discrete", [-1.0], [5.0]),
        TensorSpec("lights", "int8", [3], "MultiBinary", [0.0], [1.0]),
        TensorSpec("switches", "int64", [2], "MultiDiscrete", [0.0, 0.0], [2.0, 9.0]),
    ],
    outputs=[
        TensorSpec("action", "float32", [2], "Box", [-1.0], [1.0]),
        TensorSpec("value", "float32"),
        TensorSpec("log_probability", "float32"),
    ],
)
# fmt: off
SMALL_BY_HAND = (
    "92"                                        # [observation, outputs]
    "91 97"                                   # one tensor of seven fields
    "ab 6f62736572766174696f6e"               # "observation"
    "a7 666c6f61743332"                       # "float32"
    "91 02"                                   # [2]
    "a3 426f78"                               # "Box"
    "90 90"                                   # no bounds
    "c3"                                        # finite
    "91 97"
    "a6 616374696f6e"                         # "action"
    "a5 696e743634"                           # "int64"
    "90"                                        # []
    "a8 4469736372657465"                     # "Discrete"
    "91 cb0000000000000000"                   # [0.0]
    "91 cb4008000000000000"                   # [3.0]
    "c3"
)
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
        "05 9c" + OPENING + "0a 01 03 cd03e8 c3 c403010001 920b0c a0 00 00",
        Act(SESSION, EPOCH, 10, 1, 3, 1000, True, b"\x01\x00\x01", [11, 12]),
    ),
    "action": (
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
        "06 dc0011" + OPENING + "0b 01 01 c420" + DIGEST_HEX + "01 02 03 03 00 00 a57a65726f73 00 00 90 90",
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
    "act, every field": Act(SESSION, EPOCH, 10, 1, 2, 5_000, False, b"\x00\x01", [7], TRACEPARENT),
    "begin, with slots": Begin(SESSION, EPOCH, 8, [7], True),
    "begun, with slots": Begun(SESSION, EPOCH, 8, 1, [Lease("1.0.0", DIGEST)], [], 2),
    "act, in a slot": Act(SESSION, EPOCH, 10, 1, 1, 0, True, b"", [], "", 2, 77),
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


def files() -> dict[str, bytes]:
    """Every vector file by name."""
    return {
        "messages.json": _json(messages()),
        "malformed.json": _json(malformed()),
        "spec.json": _json(specs()),
        "tensors.json": _json(tensors()),
        "sampling.json": _json(sampling()),
        "conversation.json": _json(conversation()),
        "lane.json": _json(lane()),
    }


def messages() -> list[dict[str, Any]]:
    """Heads with their meaning; `reencodes` where an encoder that writes every field gives the same bytes."""
    listed = [_message(name, bytes.fromhex(data), message, True) for name, (data, message) in BY_HAND.items()]
    listed += [_message(name, encode(message), message, False) for name, message in BY_ENCODER.items()]
    for message in (*(message for _, message in BY_HAND.values()), *BY_ENCODER.values()):
        kind = type(message).__name__.lower()
        if not any(entry["name"] == f"{kind}, two fields from the future" for entry in listed):
            fields = [*_fields(message).values(), "future", {"a": [1]}]
            data = encode(message)[:1] + msgspec.msgpack.encode(fields)
            listed.append(_message(f"{kind}, two fields from the future", data, message, False))
    return listed


def malformed() -> list[dict[str, str]]:
    """Heads that hold no message, with the code of the error that answers them."""
    return [{"name": name, "bytes": bytes.fromhex(data).hex(), "code": code} for name, data, code in MALFORMED]


def specs() -> list[dict[str, Any]]:
    """Spec blobs, their SHA-256, and the bytes of one row of every frame."""
    listed = []
    for name, spec, by_hand in (
        ("two numbers in, one of four actions out", SMALL, SMALL_BY_HAND),
        ("lunar-lander", LUNAR_LANDER, ""),
        ("several observations and outputs", DICTIONARY, ""),
    ):
        data = bytes.fromhex(by_hand) if by_hand else encode_spec(spec)
        listed.append(
            {
                "name": name,
                "by_hand": bool(by_hand),
                "bytes": data.hex(),
                "sha256": hashlib.sha256(data).hexdigest(),
                "observation": [_tensor_spec(tensor) for tensor in spec.observation],
                "outputs": [_tensor_spec(tensor) for tensor in spec.outputs],
            }
        )
    shortest = bytes.fromhex("92 91 92 a178 a5 75696e7438 91 92 a6616374696f6e a7666c6f61743332")
    listed.append(
        {
            "name": "trailing fields left out",
            "by_hand": True,
            "bytes": shortest.hex(),
            "sha256": hashlib.sha256(shortest).hexdigest(),
            "observation": [_tensor_spec(TensorSpec("x", "uint8"))],
            "outputs": [_tensor_spec(TensorSpec("action", "float32"))],
        }
    )
    return listed


def tensors() -> list[dict[str, Any]]:
    """Tensor frames: numbers in C order, and the bytes of the frame."""
    listed: list[tuple[str, str, list[int], int, list[Any]]] = [
        ("one row of a vector", "float32", [2], 1, [1.0, -2.5]),
        ("two rows of a vector", "float32", [2], 2, [1.0, -2.5, 0.1, 3e8]),
        ("one row of a scalar: 8 bytes", "int64", [], 1, [3]),
        ("three rows of a scalar", "int64", [], 3, [3, -1, 2**40]),
        ("two rows of a 2x3 matrix, the last axis fastest", "uint8", [2, 3], 2, list(range(12))),
        ("halves", "float16", [3], 1, [1.0, -2.0, 65504.0]),
        ("doubles", "float64", [1], 1, [0.1]),
        ("small and signed", "int8", [2], 1, [-128, 127]),
        ("int16", "int16", [2], 1, [-2, 258]),
        ("int32", "int32", [2], 1, [-2, 16909060]),
        ("uint16", "uint16", [1], 1, [65534]),
        ("uint32", "uint32", [1], 1, [4294967294]),
        ("uint64", "uint64", [1], 1, [2**64 - 2]),
        ("booleans: a byte each, 0 or 1", "bool", [3], 1, [True, False, True]),
    ]
    return [
        {
            "name": name,
            "dtype": dtype,
            "shape": shape,
            "rows": rows,
            "values": [_number(value) for value in values],
            "bytes": struct.pack(f"<{len(values)}{_STRUCT_CODES[dtype]}", *values).hex(),
        }
        for name, dtype, shape, rows, values in listed
    ]


_STRUCT_CODES = {
    "float16": "e", "float32": "f", "float64": "d", "int8": "b", "int16": "h", "int32": "i", "int64": "q",
    "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q", "bool": "?",
}  # fmt: skip


# Sampling, after the README and nothing else

_U64 = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15


def mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _U64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _U64
    return value ^ (value >> 31)


def next_seed(seed: int) -> int:
    return mix((seed + _GAMMA) & _U64) & (2**63 - 1)


def bits(seed: int, step: int, draw: int) -> int:
    key = mix((mix(seed) + (step + 1) * _GAMMA) & _U64)
    return mix((key + (draw + 1) * _GAMMA) & _U64)


def uniform(seed: int, step: int, draw: int) -> float:
    return (float(bits(seed, step, draw) >> 12) + 0.5) * 2.0**-52


def categorical(logits: Sequence[float], seed: int, step: int) -> tuple[int, float]:
    scores = [value - math.log(-math.log(uniform(seed, step, draw))) for draw, value in enumerate(logits)]
    chosen = scores.index(max(scores))
    highest = max(logits)
    return chosen, logits[chosen] - highest - math.log(sum(math.exp(value - highest) for value in logits))


def gaussian(mean: Sequence[float], log_std: Sequence[float], seed: int, step: int) -> tuple[list[float], float]:
    drawn = []
    density = 0.0
    for index, (centre, width) in enumerate(zip(mean, log_std, strict=True)):
        radius = math.sqrt(-2.0 * math.log(uniform(seed, step, 2 * index)))
        normal = radius * math.cos(2.0 * math.pi * uniform(seed, step, 2 * index + 1))
        drawn.append(centre + math.exp(width) * normal)
        density += -0.5 * normal**2 - width - 0.5 * math.log(2.0 * math.pi)
    return drawn, density


def squashed(mean: Sequence[float], log_std: Sequence[float], seed: int, step: int) -> tuple[list[float], float]:
    drawn, density = gaussian(mean, log_std, seed, step)
    tangents = [math.tanh(value) for value in drawn]
    return tangents, density - sum(math.log(1.0 - value**2) for value in tangents)


def sampling() -> dict[str, Any]:
    """What the daemon draws for a seed and a step."""
    counters = [(0, 0, 0), (7, 0, 0), (7, 0, 1), (7, 1, 0), (8, 0, 0), (2**63 - 1, 1_000, 5)]
    logits = [0.5, -1.25, 2.0, 0.0]
    steps = [(7, step) for step in range(8)] + [(8, 0), (123_456_789, 3)]
    mean, log_std = [0.0, 1.0, -2.0], [0.0, -1.0, 0.5]
    return {
        "mix": [{"value": str(value), "mixed": str(mix(value))} for value in (0, 1, 7, 2**63, _U64)],
        "next_seed": [{"seed": str(seed), "next": str(next_seed(seed))} for seed in (0, 7, 8, 2**63 - 1)],
        "uniform": [
            {"seed": str(seed), "step": step, "draw": draw, "bits": str(bits(seed, step, draw)),
             "uniform": uniform(seed, step, draw)}
            for seed, step, draw in counters
        ],
        "categorical": [
            {"logits": logits, "start": 0, "seed": str(seed), "step": step, "action": chosen, "log_probability": log_p}
            for seed, step in steps
            for chosen, log_p in [categorical(logits, seed, step)]
        ],
        "gaussian": [
            {"mean": mean, "log_std": log_std, "low": [-1.0], "high": [1.0], "seed": str(seed), "step": step,
             "drawn": drawn, "action": [min(1.0, max(-1.0, value)) for value in drawn], "log_probability": log_p}
            for seed, step in steps[:4]
            for drawn, log_p in [gaussian(mean, log_std, seed, step)]
        ],
        "squashed_gaussian": [
            {"mean": mean, "log_std": log_std, "low": [-2.0], "high": [4.0], "seed": str(seed), "step": step,
             "drawn": drawn, "action": [-2.0 + 0.5 * (value + 1.0) * 6.0 for value in drawn], "log_probability": log_p}
            for seed, step in steps[:4]
            for drawn, log_p in [squashed(mean, log_std, seed, step)]
        ],
    }  # fmt: skip


def conversation() -> list[dict[str, Any]]:
    """A whole session, frame by frame: what the client sends and what the daemon answers."""
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
            "from": speaker,
            "type": type(message).__name__.lower(),
            "frames": [encode(message).hex(), *(tensor.hex() for tensor in frames)],
            "fields": {name: _plain(value) for name, value in _fields(message).items()},
        }
        for speaker, message, frames in lines
    ]


# The lane, after the README and nothing else

# fmt: off
STEPS_BY_HAND: dict[str, tuple[str, Message]] = {
    "act, every integer as wide as it may become": (
        "059ccf0000000000001234cf0000000000000005cf000000000000000acf0000000000000001cd0002cf00000000000003e8c3c40090a000cf"
        + "00" * 8,
        Act(SESSION, EPOCH, 10, 1, 2, 1_000, True),
    ),
    "action, every integer as wide as it may become": (
        "06 9f cf0000000000001234 cf0000000000000005 cf000000000000000a cf0000000000000001 cd0002 c420" + DIGEST_HEX
        + "cf000000e8d4a51000 cf0000000000000fa0 cf0000000000002710 cf0000000000004e20 cd0003 01 a0 00 cf0000000000000000",
        Action(SESSION, EPOCH, 10, 1, 2, DIGEST, 10**12, 4_000, 10_000, 20_000, 3, 1),
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


def lane() -> dict[str, Any]:
    """Whole packets with the message in them, packets that hold none, and where things lie in a slot."""
    pairs = [
        (f"conversation, line {number}", bytes.fromhex(line["frames"][0]), list(map(bytes.fromhex, line["frames"][1:])))
        for number, line in enumerate(conversation())
    ]
    numbers = [struct.pack("<4f", 1.0, -2.5, 0.5, 0.25), struct.pack("<2q", 2, 3)]
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


_A_STEP = "act, every integer as wide as it may become"


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
    places: dict[str, list[dict[str, Any]]] = {}
    for kind, described in (("observation", spec.observation), ("outputs", spec.outputs)):
        places[kind] = []
        for tensor in described:
            size = tensor.row_bytes * rows
            places[kind].append({"name": tensor.name, "offset": end, "bytes": size})
            end += math.ceil(size / 64) * 64
    return {"spec": name, "rows": rows, **places, "slot_bytes": math.ceil(end / 4_096) * 4_096}


def _message(name: str, data: bytes, message: Message, by_hand: bool) -> dict[str, Any]:
    return {
        "name": name,
        "type": type(message).__name__.lower(),
        "by_hand": by_hand,
        "reencodes": encode(message) == data,
        "bytes": data.hex(),
        "fields": {key: _plain(value) for key, value in _fields(message).items()},
    }


def _fields(message: Message) -> dict[str, Any]:
    return msgspec.structs.asdict(message)


def _plain(value: Any) -> Any:
    """JSON for a field: bytes as {"bin": hex}, a nested array as an object."""
    if isinstance(value, bytes):
        return {"bin": value.hex()}
    if isinstance(value, msgspec.Struct):
        return {key: _plain(inner) for key, inner in msgspec.structs.asdict(value).items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return _number(value)


def _number(value: Any) -> Any:
    """An integer that a JSON reader with doubles would change is written as a string."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= JSON_INTEGER_MAX:
        return str(value)
    return value


def _tensor_spec(tensor: TensorSpec) -> dict[str, Any]:
    return {**msgspec.structs.asdict(tensor), "row_bytes": tensor.row_bytes}


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes the test vectors of the protocol.")
    parser.add_argument("--check", action="store_true", help="only say which files differ")
    is_check = parser.parse_args().check
    differing = []
    for name, data in files().items():
        path = FOLDER / name
        if not path.exists() or path.read_bytes() != data:
            differing.append(name)
            if not is_check:
                FOLDER.mkdir(exist_ok=True)
                path.write_bytes(data)
    print("\n".join(differing) or "every vector file is as it should be")
    return 1 if is_check and differing else 0


assert {struct.__name__.lower() for struct in STRUCTS.values()} == {
    type(message).__name__.lower() for _, message in BY_HAND.values()
}

if __name__ == "__main__":
    sys.exit(main())
