"""Values that several vector files share, and how a message's fields become JSON."""

from __future__ import annotations

from typing import Any

import msgspec

from pillion_protocol import Message, Spec, TensorSpec

SESSION = 0x1234
EPOCH = 5
DIGEST = bytes(range(32))
DIGEST_HEX = DIGEST.hex()
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
JSON_INTEGER_MAX = 2**53
"""From here on a JSON reader that keeps numbers as doubles may change an integer."""

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
INSTRUCTED = Spec(
    observation=[
        TensorSpec("camera", "uint8", [3, 8, 8], "Box", [0.0], [255.0]),
        TensorSpec("prompt", "uint8", [48], "Text", [1.0]),
        TensorSpec("note", "uint8", [4], "Text"),
    ],
    outputs=[TensorSpec("action", "float32", [2])],
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
# fmt: on


def plain_fields(message: Message) -> dict[str, Any]:
    """The fields of a message as JSON: bytes as {"bin": hex}, a nested array as an object."""
    return {name: _plain(value) for name, value in msgspec.structs.asdict(message).items()}


def plain_number(value: Any) -> Any:
    """Writes an integer that a reader with doubles would change as a string."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= JSON_INTEGER_MAX:
        return str(value)
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bin": value.hex()}
    if isinstance(value, msgspec.Struct):
        return {key: _plain(inner) for key, inner in msgspec.structs.asdict(value).items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return plain_number(value)
