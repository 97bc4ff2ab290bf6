"""`protocol/README.md` lists exactly the messages, fields, codes and limits of the code."""

from __future__ import annotations

import re
from typing import get_args

import msgspec
import numpy as np
import pytest

from pillion_protocol import HEAD_BYTES_MAX, PROTOCOL_VERSION, BatchClose, ErrorCode, Fallback, Limits, MessageType
from pillion_protocol.codec import STRUCTS
from pillion_protocol.specs import DType, Space, TensorSpec
from pilliond.limits import MESSAGE_BYTES_HARD_MAX, TENSOR_FRAMES_MAX
from tests.harness import ROOT

PAGE = (ROOT / "protocol" / "README.md").read_text()
ROW = re.compile(r"^\| (\d+) \| `(\w+)` \| ([^|]+) \| ([^|]+) \|", re.MULTILINE)
IN_PROSE = re.compile(r"Field (\d+): `(\w+)`")


def section(title: str) -> str:
    """Returns the text below a heading, up to the next heading."""
    found = re.search(rf"^#+ {title}.*?\n(.*?)(?=^#)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def section_of(kind: MessageType) -> str:
    title = "9 `ping`, 10 `pong`" if kind in (MessageType.PING, MessageType.PONG) else f"{kind} `{kind.name.lower()}`"
    return section(title)


@pytest.mark.parametrize("kind", list(MessageType))
def test_every_field_of_a_message_is_listed_with_its_index(kind: MessageType) -> None:
    text = section_of(kind)
    listed = {int(index): name for index, name, *_ in ROW.findall(text)}
    listed |= {int(index): name for index, name in IN_PROSE.findall(text)}
    assert listed == dict(enumerate(STRUCTS[kind].__struct_fields__[3:], 3))


@pytest.mark.parametrize("kind", [MessageType.HELLO, MessageType.BEGUN, MessageType.ACT])
def test_the_listed_defaults_are_those_of_the_code(kind: MessageType) -> None:
    described = msgspec.structs.fields(STRUCTS[kind])
    for index, name, _, default in ROW.findall(section_of(kind)):
        field = described[int(index)]
        if field.required:
            assert default == "—", name
        elif field.default is msgspec.NODEFAULT:
            assert default == "`[]`", name
        else:
            spelled = {b"": "empty", "": '`""`', True: "true", False: "false"}
            expected = f'`"{field.default}"`' if isinstance(field.default, Fallback) else spelled.get(field.default)
            if type(field.default) is int:
                expected = str(field.default)
            assert default == expected, name


def test_the_opening_fields_are_listed() -> None:
    assert [name for _, name, *_ in re.findall(r"^\| (\d) \| `(\w+)` \| integer \|", section("The head"), re.MULTILINE)] == [
        "session", "epoch", "sequence",
    ]  # fmt: skip


def test_every_error_code_is_listed() -> None:
    assert re.findall(r"^\| `(\w+)` \|", section("Errors"), re.MULTILINE) != []
    assert set(re.findall(r"^\| `(\w+)` \|", section("Errors"), re.MULTILINE)) == {code.value for code in ErrorCode}


def test_every_fallback_is_listed() -> None:
    listed = re.findall(r"^\| `(\w+)` \| (?!reply)", section("Budgets and fallbacks"), re.MULTILINE)
    assert set(listed) - {"fallback"} == {fallback.value for fallback in Fallback}


def test_every_reason_to_close_a_batch_is_listed() -> None:
    row = next(line for line in PAGE.splitlines() if "| `batch_close` |" in line)
    assert [int(number) for number in re.findall(r"[:,] (\d) ", row)] == [*sorted(BatchClose)]


def test_the_fields_of_a_tensor_and_of_the_limits_are_listed() -> None:
    listed = re.findall(r"^\| \d \| `(\w+)` \|", section("The spec"), re.MULTILINE)
    assert listed == list(TensorSpec.__struct_fields__)
    assert f"[{', '.join(Limits.__struct_fields__)}]" in section("2 `welcome`")
    for space in get_args(Space):
        assert f'`"{space}"`' in section("The spec")


def test_the_bytes_of_every_dtype_are_listed() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d) \|", section("Tensors"), re.MULTILINE)
    listed = {name: int(size) for name, size in rows}
    assert len(listed) == len(rows)
    assert listed == {name: np.dtype(name).itemsize for name in get_args(DType)}


def test_the_listed_limits_are_those_of_the_code() -> None:
    limits = section("Limits")
    assert f"{HEAD_BYTES_MAX:,}" in limits
    assert f"| {TENSOR_FRAMES_MAX} |" in limits
    assert f"{MESSAGE_BYTES_HARD_MAX // 2**20} MiB" in limits
    assert f"protocol version {PROTOCOL_VERSION}" in PAGE


def test_every_vector_file_is_listed() -> None:
    for path in (ROOT / "protocol" / "vectors").iterdir():
        assert f"| `{path.name}` |" in PAGE
