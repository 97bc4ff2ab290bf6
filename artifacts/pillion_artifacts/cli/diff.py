"""The differences between two versions: their files, and their cards key by key."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from pillion.cli_support import columns, short_digest
from pillion_artifacts.store.store import Resolved, Store


class Difference(msgspec.Struct, frozen=True):
    """A file or a key of the card that the two versions do not have alike; None: that version has none."""

    part: Literal["file", "card"]
    path: str
    before: Any = None
    after: Any = None


class Comparison(msgspec.Struct, frozen=True):
    """Two versions and their differences."""

    before: Resolved
    after: Resolved
    differences: list[Difference]


def compare(store: Store, before: str, after: str) -> Comparison:
    """Compares the versions that two references name. Raises as `Store.resolve` and `Store.manifest`."""
    sides = [store.resolve(reference) for reference in (before, after)]
    manifests = [store.manifest(side) for side in sides]
    files = [{layer.title: layer.digest for layer in manifest.layers} for manifest in manifests]
    cards = [
        flat(msgspec.to_builtins(store.card(side, manifest))) for side, manifest in zip(sides, manifests, strict=True)
    ]
    found = [Difference("file", *entry) for entry in _differing(*files)]
    found += [Difference("card", *entry) for entry in _differing(*cards)]
    return Comparison(sides[0], sides[1], found)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Returns the leaves of nested mappings and lists of mappings, by their path; a list of plain values is a leaf."""
    if isinstance(value, dict):
        pairs = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        pairs = [(f"{path}[{number}]", item) for number, item in enumerate(value)]
    else:
        return {path: value}
    return {key: leaf for name, item in pairs for key, leaf in flat(item, name).items()}


def print_differences(comparison: Comparison) -> None:
    """Prints the differences as a table."""
    if not comparison.differences:
        print(f"{comparison.before} and {comparison.after} do not differ")
        return
    rows = [
        (found.part, found.path, _cell(found, found.before), _cell(found, found.after))
        for found in comparison.differences
    ]
    print(columns(("PART", "WHERE", str(comparison.before), str(comparison.after)), rows))


def _differing(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    keys = list(dict.fromkeys([*before, *after]))
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def _cell(found: Difference, value: Any) -> str:
    if value is None:
        return "-"
    return short_digest(value) if found.part == "file" else str(value)
