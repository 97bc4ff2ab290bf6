"""Pins: versions that the collection of garbage leaves alone until somebody takes the pin out."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from pillion_artifacts.errors import UNREADABLE, InvalidArtifactError, MissingFileError
from pillion_artifacts.limits import STATE_BYTES_MAX
from pillion_artifacts.oci.blobs import read_small

PINS_NAME: Final = "pins.json"


class Pin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A version that is to be kept, and who said so."""

    policy: str
    version: str
    digest: str
    at: str
    by: str
    reason: str = ""


def encode_pins(pins: list[Pin]) -> bytes:
    """The bytes of the file of all pins."""
    return msgspec.json.encode(pins) + b"\n"


def read_pins(root: Path) -> list[Pin]:
    """All pins; raises `InvalidArtifactError` where the file is none."""
    path = root / PINS_NAME
    try:
        return msgspec.json.decode(read_small(path, STATE_BYTES_MAX, PINS_NAME), type=list[Pin])
    except MissingFileError:
        return []
    except UNREADABLE as error:
        raise InvalidArtifactError(f"{PINS_NAME}: {error}") from None
