"""Evaluation holds: versions that a named campaign needs. They outlive the daemon, and end at a time that was said."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from pillion_artifacts.errors import UNREADABLE, InvalidArtifactError, MissingFileError
from pillion_artifacts.limits import STATE_BYTES_MAX
from pillion_artifacts.oci.blobs import read_small

EVALUATIONS_NAME: Final = "evaluations.json"


class EvaluationHold(msgspec.Struct, frozen=True):
    """A version that is held for a campaign: `gc` leaves it alone, and a daemon keeps it loaded."""

    id: str
    """Its name and the record of the audit log that it began with: another hold of that name has another."""
    name: str
    """What the campaign calls it; one of a policy has it."""
    policy: str
    version: str
    digest: str
    at: str
    until: datetime
    """UTC; from then on it holds nothing."""
    by: str
    reason: str = ""


def encode_evaluations(holds: list[EvaluationHold]) -> bytes:
    """The bytes of the file of all evaluation holds."""
    return msgspec.json.encode(holds) + b"\n"


def read_evaluations(root: Path) -> list[EvaluationHold]:
    """All that were made and not ended, also those whose time is over; raises `InvalidArtifactError`."""
    path = root / EVALUATIONS_NAME
    try:
        return msgspec.json.decode(read_small(path, STATE_BYTES_MAX, EVALUATIONS_NAME), type=list[EvaluationHold])
    except MissingFileError:
        return []
    except UNREADABLE as error:
        raise InvalidArtifactError(f"{EVALUATIONS_NAME}: {error}") from None


def held_digests(root: Path, now: datetime) -> set[str]:
    """The versions that are held at that time; raises `InvalidArtifactError`."""
    return {hold.digest for hold in read_evaluations(root) if hold.until > now}
