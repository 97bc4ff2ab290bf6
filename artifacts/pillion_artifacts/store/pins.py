"""Pins: versions that garbage collection keeps until someone removes the pin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import asdict

from pillion_artifacts.errors import PolicyNotFoundError
from pillion_artifacts.store.state_files import encode_list, read_list

if TYPE_CHECKING:
    from pillion_artifacts.store.store import Resolved, Store

PINS_NAME: Final = "pins.json"


class Pin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pinned version, and who pinned it."""

    policy: str
    version: str
    digest: str
    at: str
    by: str
    reason: str = ""


def read_pins(root: Path) -> list[Pin]:
    """Reads all pins. Raises `InvalidArtifactError` for a damaged file."""
    return read_list(root, PINS_NAME, list[Pin])


def pin_version(store: Store, reference: str, *, by: str = "", reason: str = "") -> Pin:
    """Pins the version that `reference` means; `gc` keeps it until `unpin_version`."""
    with store.change(reference) as change:
        target = store.resolve(reference)
        record = store.record("pin", by, reason, **asdict(target))
        pin = Pin(**asdict(target), at=record.at, by=record.by, reason=record.reason)
        others = [each for each in read_pins(store.root) if each.digest != pin.digest]
        change.write(PINS_NAME, encode_list([*others, pin]))
        change.commit([record])
    return pin


def unpin_version(store: Store, reference: str, *, by: str = "", reason: str = "") -> Resolved:
    """Removes the pin of a version. Raises `PolicyNotFoundError` if it has none."""
    with store.change(reference) as change:
        target = store.resolve(reference)
        pins = read_pins(store.root)
        others = [pin for pin in pins if pin.digest != target.digest]
        if len(others) == len(pins):
            raise PolicyNotFoundError(f"{target} is not pinned")
        change.write(PINS_NAME, encode_list(others))
        change.commit([store.record("unpin", by, reason, **asdict(target))])
    return target
