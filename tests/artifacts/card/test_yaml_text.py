"""YAML of strangers: values, or one line; and never the end of the process that reads it."""

from __future__ import annotations

import pytest

from pillion_artifacts import InvalidArtifactError, parse_card
from pillion_artifacts.yaml_text import DEPTH_MAX, read_yaml


def test_plain_values_are_read() -> None:
    assert read_yaml(b"a: [1, 2.5, null, {b: c}]\nd: 'e'", "it") == {"a": [1, 2.5, None, {"b": "c"}], "d": "e"}
    deep = b"[" * DEPTH_MAX + b"]" * DEPTH_MAX
    assert isinstance(read_yaml(deep, "it"), list)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 100_000, "line 1: expected values nested at most 32 deep, got more"),
        (b"- " * 5_000, "line 1: expected values nested at most 32 deep, got more"),
        (b"a: &a [1]\nb: [*a, *a]\n", "line 2: expected values, got an alias"),
        (b"&a [*a]", "line 1: expected values, got an alias"),
        (b"{a: 1,\n b: {c: 1, c: 2}}", "line 2: key 'c' is given twice"),
        (b"{[a]: 1}", "not YAML: while constructing a mapping"),
        (b"a: !!python/object/apply:os.system [ls]", "not YAML: could not determine a constructor"),
        (b"a: [", "not YAML: while parsing"),
        (b"a: 2001-99-99", "month must be in"),
        (b"a: " + b"9" * 10_000, "Exceeds the limit"),
        (b"\xff\xfe\x00", "not YAML: unacceptable character"),
        (b"\x00", "not YAML: unacceptable character"),
    ],
)
def test_what_is_not_plain_is_refused_in_one_line(text: bytes, message: str) -> None:
    with pytest.raises(InvalidArtifactError) as caught:
        parse_card(text)
    assert str(caught.value).startswith("model card: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
