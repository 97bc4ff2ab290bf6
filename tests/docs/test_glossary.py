"""The glossary has each word once, and each name in it exists."""

from __future__ import annotations

import importlib
import re
from typing import Any

import msgspec
import pytest

from pillion_protocol import messages
from pilliond.settings.schema import Settings
from tests.docs.pages import GLOSSARY, REFERENCE, names, rows, section

ENTRIES = rows(GLOSSARY.read_text())
PACKAGES = ("pilliond", "pillion", "pillion_protocol", "pillion_artifacts", "pillion_bench", "pillion_worker")


def ids(entry: list[str]) -> str:
    return entry[0]


def resolve(name: str) -> Any:
    """What a dotted name stands for; below `pilliond` where it begins with no package of ours."""
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        parts = ["pilliond", *parts]
    for length in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError as error:
            # Only what is not there is looked for elsewhere; what cannot be imported fails.
            if not ".".join(parts[:length]).startswith(error.name or "."):
                raise
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise AssertionError(name)


def test_each_word_has_one_entry() -> None:
    found = [word for entry in ENTRIES for word in re.split(r", | \(|\)", entry[0]) if word]
    assert len(found) > 60
    assert sorted(found) == sorted(set(found))


@pytest.mark.parametrize("entry", ENTRIES, ids=ids)
def test_each_entry_has_a_meaning_and_names_that_exist(entry: list[str]) -> None:
    _, meaning, _, wire, code, outside = entry
    assert meaning
    for name in names(code):
        assert resolve(name) is not None
    for name in names(wire):
        message, _, field = name.partition(".")
        kind = getattr(messages, message.capitalize())
        assert not field or field in {each.name for each in msgspec.structs.fields(kind)}
    settings = msgspec.to_builtins(Settings())
    metrics = {name for row in rows(section(REFERENCE, "Metrics")) for name in names(row[0])}
    for name in names(outside):
        if name.startswith("pillion_"):
            assert name in metrics
        elif name.startswith("["):
            assert name.strip("[]") in settings
        else:
            part, _, key = name.partition(".")
            assert key in settings[part]
