"""Small files of the store with one JSON list each: pins, evaluation holds, routes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from pillion_artifacts.errors import UNREADABLE, InvalidArtifactError, MissingFileError
from pillion_artifacts.limits import STATE_BYTES_MAX
from pillion_artifacts.oci.blobs import read_small

_Item = TypeVar("_Item", bound=msgspec.Struct)


def encode_list(items: Sequence[msgspec.Struct]) -> bytes:
    """The bytes of a file with these items."""
    return msgspec.json.encode(items) + b"\n"


def read_list(root: Path, target: str, kind: type[list[_Item]]) -> list[_Item]:
    """Reads the items of the file `target` below `root`, none if there is no file. Raises `InvalidArtifactError`."""
    try:
        return msgspec.json.decode(read_small(root / target, STATE_BYTES_MAX, target), type=kind)
    except MissingFileError:
        return []
    except UNREADABLE as error:
        raise InvalidArtifactError(f"{target}: {error}") from None
