"""Aliases: names that move from version to version, each a small file of its own, so that one is read without the index."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pillion_artifacts.errors import UNREADABLE, InvalidArtifactError, MissingFileError, PolicyNotFoundError
from pillion_artifacts.limits import STATE_BYTES_MAX
from pillion_artifacts.names import is_alias_name, is_policy_name
from pillion_artifacts.oci.blobs import read_small

ALIASES_NAME = "aliases"


class Alias(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Where an alias points, and who moved it there."""

    policy: str
    alias: str
    version: str
    digest: str
    moved_at: str = ""
    moved_by: str = ""
    reason: str = ""
    was_version: str = ""
    was_digest: str = ""
    """Where it pointed before; kept by `gc`, so that a rollback finds it."""


_decoder = msgspec.json.Decoder(Alias)


def alias_target(policy: str, alias: str) -> str:
    """The path of an alias inside a store."""
    return f"{ALIASES_NAME}/{policy}/{alias}.json"


def encode_alias(alias: Alias) -> bytes:
    """The bytes of an alias's file."""
    return msgspec.json.encode(alias) + b"\n"


def read_alias(root: Path, policy: str, alias: str) -> Alias:
    """Where the alias points; raises `PolicyNotFoundError` where there is none of that name."""
    found = _decode(root / alias_target(policy, alias), policy, alias)
    if found is None:
        held = ", ".join(sorted(each.alias for each in read_aliases(root, policy))) or "none"
        raise PolicyNotFoundError(f"policy {policy!r} has no alias {alias!r}, it has {held}")
    return found


def read_aliases(root: Path, policy: str = "") -> list[Alias]:
    """All aliases of a policy, or of all, sorted."""
    folders = [root / ALIASES_NAME / policy] if policy else sorted((root / ALIASES_NAME).glob("*"))
    found = [
        _decode(path, folder.name, path.stem)
        for folder in folders
        if is_policy_name(folder.name)
        for path in sorted(folder.glob("*.json"))
        if is_alias_name(path.stem)
    ]
    return [alias for alias in found if alias is not None]


def _decode(path: Path, policy: str, name: str) -> Alias | None:
    """The alias in a file, None where there is no file: others may take an alias away at any time."""
    whose = f"{policy}@{name}"
    try:
        alias = _decoder.decode(read_small(path, STATE_BYTES_MAX, whose))
    except MissingFileError:
        return None
    except UNREADABLE as error:
        raise InvalidArtifactError(f"{whose}: the alias cannot be read: {error}") from None
    if (alias.policy, alias.alias) != (policy, name):
        raise InvalidArtifactError(f"{whose}: the alias is that of {alias.policy}@{alias.alias}")
    return alias
