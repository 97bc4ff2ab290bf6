"""Aliases: names that move from version to version. Each is a small file, so reading one does not need the index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import asdict

from pillion_artifacts.errors import (
    UNREADABLE,
    AliasMovedError,
    InvalidArtifactError,
    MissingFileError,
    PolicyNotFoundError,
)
from pillion_artifacts.limits import STATE_BYTES_MAX
from pillion_artifacts.names import checked_alias, checked_policy, is_alias_name, is_policy_name
from pillion_artifacts.oci.blobs import read_small
from pillion_artifacts.store.audit_log import Action, Record

if TYPE_CHECKING:
    from pillion_artifacts.store.store import Store

ALIASES_NAME = "aliases"


class Alias(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """An alias, its version, and the author of its last move."""

    policy: str
    alias: str
    version: str
    digest: str
    moved_at: str = ""
    moved_by: str = ""
    reason: str = ""
    was_version: str = ""
    was_digest: str = ""
    """Its previous version; `gc` keeps it, so that a rollback finds it."""


_decoder = msgspec.json.Decoder(Alias)


def alias_target(policy: str, alias: str) -> str:
    """The path of an alias inside a store."""
    return f"{ALIASES_NAME}/{policy}/{alias}.json"


def encode_alias(alias: Alias) -> bytes:
    """The bytes of an alias's file."""
    return msgspec.json.encode(alias) + b"\n"


def read_alias(root: Path, policy: str, alias: str) -> Alias:
    """Reads an alias. Raises `PolicyNotFoundError` if there is none of that name."""
    found = _read(root, policy, alias)
    if found is None:
        names = ", ".join(sorted(each.alias for each in read_aliases(root, policy))) or "none"
        raise PolicyNotFoundError(f"policy {policy!r} has no alias {alias!r}, it has {names}")
    return found


def read_aliases(root: Path, policy: str = "") -> list[Alias]:
    """Reads the aliases of one policy, or of all policies, sorted by policy and name."""
    folders = [root / ALIASES_NAME / policy] if policy else sorted((root / ALIASES_NAME).glob("*"))
    found = [
        _read(root, folder.name, path.stem)
        for folder in folders
        if is_policy_name(folder.name)
        for path in sorted(folder.glob("*.json"))
        if is_alias_name(path.stem)
    ]
    return [alias for alias in found if alias is not None]


def move_alias(
    store: Store,
    policy: str,
    alias: str,
    to: str,
    *,
    expected: str,
    by: str = "",
    reason: str = "",
    action: Action = "alias",
) -> Alias:
    """Points an alias at the version that `to` means (a version, a range or another alias), by compare-and-swap.

    `expected` is the version that the alias points at now, empty for a new alias. Raises `AliasMovedError` if it points
    elsewhere, and `PolicyNotFoundError` if `to` means no version.
    """
    what = f"{checked_policy(policy)}@{checked_alias(alias)}"
    with store.change(what) as change:
        target = store.resolve(f"{policy}@{to}")
        now = _read(store.root, policy, alias)
        actual = now.version if now else ""
        if actual != expected:
            raise AliasMovedError(
                f"{what}: expected it to point at {expected or 'nothing'}, it points at {actual or 'nothing'}"
            )
        record = store.record(action, by, reason, **asdict(target), alias=alias, was=actual)
        moved = Alias(
            **asdict(target),
            alias=alias,
            moved_at=record.at,
            moved_by=record.by,
            reason=record.reason,
            was_version=actual,
            was_digest=now.digest if now else "",
        )
        change.write(alias_target(policy, alias), encode_alias(moved))
        change.commit([record])
    return moved


def remove_alias(store: Store, policy: str, alias: str, *, expected: str, by: str = "", reason: str = "") -> None:
    """Removes an alias that points at `expected`. Raises `AliasMovedError` if it points elsewhere."""
    what = f"{checked_policy(policy)}@{checked_alias(alias)}"
    with store.change(what) as change:
        now = read_alias(store.root, policy, alias)
        if now.version != expected:
            raise AliasMovedError(f"{what}: expected it to point at {expected}, it points at {now.version}")
        change.remove(alias_target(policy, alias))
        change.commit([store.record("unalias", by, reason, policy=policy, alias=alias, was=now.version)])


def roll_back_alias(store: Store, policy: str, alias: str, *, by: str = "", reason: str = "") -> Alias:
    """Undoes the last move of an alias; called again, the move before that.

    Raises `PolicyNotFoundError` if the audit log has no previous version.
    """
    now = read_alias(store.root, policy, alias)
    to = previous_version(store, now)
    if not to:
        raise PolicyNotFoundError(f"{policy}@{alias}: the audit log has no previous version")
    return move_alias(store, policy, alias, to, expected=now.version, by=by, reason=reason, action="rollback")


def previous_version(store: Store, now: Alias) -> str:
    """The version that `roll_back_alias` would return to, empty if the audit log has none."""
    targets = _targets(store.history(now.policy), now.alias)
    return targets[-2] if len(targets) > 1 and targets[-1] == now.version else ""


def _read(root: Path, policy: str, name: str) -> Alias | None:
    """The alias, or None: another process may remove its file at any time."""
    what = f"{policy}@{name}"
    try:
        alias = _decoder.decode(read_small(root / alias_target(policy, name), STATE_BYTES_MAX, what))
    except MissingFileError:
        return None
    except UNREADABLE as error:
        raise InvalidArtifactError(f"{what}: the alias cannot be read: {error}") from None
    if (alias.policy, alias.alias) != (policy, name):
        raise InvalidArtifactError(f"{what}: the file contains the alias {alias.policy}@{alias.alias}")
    return alias


def _targets(records: list[Record], alias: str) -> list[str]:
    """The versions that an alias pointed at, oldest first. A rollback removes the last one."""
    targets: list[str] = []
    for record in records:
        if record.alias != alias:
            continue
        if record.action == "alias":
            targets.append(record.version)
        elif record.action == "rollback" and len(targets) > 1:
            targets.pop()
        elif record.action == "unalias":
            targets.clear()
    return targets
