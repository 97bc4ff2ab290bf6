"""Untrusted YAML: values or a one-line error, and never a crash of the reader."""

from __future__ import annotations

import pytest

from pillion_artifacts import InvalidArtifactError, parse_card
from pillion_artifacts.limits import YAML_DEPTH_MAX
from pillion_artifacts.yaml_text import read_yaml


def test_plain_values_are_read() -> None:
    assert read_yaml(b"a: [1, 2.5, null, {b: c}]\nd: 'e'", "it") == {"a": [1, 2.5, None, {"b": "c"}], "d": "e"}
    deep = b"[" * YAML_DEPTH_MAX + b"]" * YAML_DEPTH_MAX
    assert isinstance(read_yaml(deep, "it"), list)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 100_000, "line 1: expected values nested at most 32 deep, got more"),
        (b"- " * 5_000, "line 1: expected values nested at most 32 deep, got more"),
        (b"a: 1\nb: " + b"{" * 5_000, "line 2: expected values nested at most 32 deep, got more"),
        ("\ufeffä: ".encode() + b"[" * 33 + b"@", "line 1: expected values nested at most 32 deep, got more"),
        (("[" * 5_000).encode("utf-16"), "line 1: expected values nested at most 32 deep, got more"),
        (b"a: &a [1]\nb: [*a, *a]\n", "line 2: expected values, got an alias"),
        (b"&a [*a]", "line 1: expected values, got an alias"),
        (b"{a: 1,\n b: {c: 1, c: 2}}", "line 2: key 'c' is given twice"),
        (b"{[a]: 1}", "model card: not YAML: "),
        (b"a: !!python/object/apply:os.system [ls]", "model card: not YAML: "),
        (b"a: [", "model card: not YAML: "),
        (b"a: 2001-99-99", "model card: not a value: "),
        (b"a: " + b"9" * 10_000, "model card: not a value: "),
        (b"\xff\xfe\x00", "model card: not YAML: "),
        (b"\x00", "model card: not YAML: "),
    ],
)
def test_other_than_plain_values_are_refused_in_one_line(text: bytes, message: str) -> None:
    with pytest.raises(InvalidArtifactError) as caught:
        parse_card(text)
    assert str(caught.value).startswith("model card: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
