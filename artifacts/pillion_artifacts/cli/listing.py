"""Listings of a store: versions, one version, its history, and what a transfer or a collection did."""

from __future__ import annotations

from typing import Any

import msgspec
import semver

from pillion.cli_support import columns, format_bytes, short_digest
from pillion_artifacts.card.model_card import ACTION
from pillion_artifacts.errors import InvalidNameError
from pillion_artifacts.maintenance.garbage_collection import Collection
from pillion_artifacts.names import checked_alias, checked_policy, checked_version, version_name
from pillion_artifacts.oci.manifest import CREATED, PUBLISHED_BY, Descriptor
from pillion_artifacts.remotes.transfer import Transfer
from pillion_artifacts.store.aliases import Alias, move_alias, read_alias, remove_alias
from pillion_artifacts.store.audit_log import Record
from pillion_artifacts.store.store import Store


class Row(msgspec.Struct, frozen=True):
    """A version in a listing."""

    policy: str
    version: str
    digest: str
    published_at: str
    published_by: str
    aliases: list[str]
    pinned: bool
    signatures: int


def list_store(store: Store, policy: str = "") -> list[Row]:
    """Returns the versions of a policy, or of all, by name and then oldest first. Raises `PolicyNotFoundError`."""
    index = store.index()
    if policy:
        store.versions(policy)
    aliases: dict[str, list[str]] = {}
    for alias in store.aliases(policy):
        aliases.setdefault(alias.digest, []).append(alias.alias)
    pinned = {pin.digest for pin in store.pins()}
    signatures: dict[str, int] = {}
    for entry in index.manifests:
        if subject := entry.subject:
            signatures[subject] = signatures.get(subject, 0) + 1
    entries = [entry for entry in index.versions() if policy in ("", entry.title)]
    entries.sort(key=lambda entry: (entry.title, semver.Version.parse(entry.version)))
    return [_row(entry, aliases, pinned, signatures) for entry in entries]


def describe_version(store: Store, reference: str) -> dict[str, Any]:
    """Returns everything about the version that `reference` names, as `pillion artifact show --json` prints it."""
    resolved = store.resolve(reference)
    manifest = store.manifest(resolved)
    card = store.card(resolved, manifest)
    row = next((row for row in list_store(store, resolved.policy) if row.digest == resolved.digest), None)
    records = [record for record in store.history(resolved.policy) if record.version == resolved.version]
    return {
        **msgspec.to_builtins(resolved),
        "published_at": row.published_at if row else "",
        "published_by": row.published_by if row else "",
        "aliases": row.aliases if row else [],
        "pinned": row.pinned if row else False,
        "signatures": row.signatures if row else 0,
        "files": [
            {"name": layer.title, "media_type": layer.media_type, "digest": layer.digest, "size_bytes": layer.size}
            for layer in manifest.layers
        ],
        "card": msgspec.to_builtins(card),
        "history": msgspec.to_builtins(records),
    }


def move_or_read_alias(
    store: Store, name: str, version: str, expect: str | None, remove: bool, by: str, reason: str
) -> Alias:
    """Shows, moves or removes an alias; returns it as it then is, without a version if it was removed."""
    policy, separator, alias = name.partition("@")
    if not separator:
        raise InvalidNameError(f"expected NAME@ALIAS, got {name!r}")
    checked_policy(policy), checked_alias(alias)
    if not version and not remove:
        return read_alias(store.root, policy, alias)
    now = next((each.version for each in store.aliases(policy) if each.alias == alias), "")
    expected = now if expect is None else "" if expect == "none" else checked_version(expect)
    if remove:
        remove_alias(store, policy, alias, expected=expected, by=by, reason=reason)
        return Alias(policy, alias, "", "")
    return move_alias(store, policy, alias, version, expected=expected, by=by, reason=reason)


def print_listing(rows: list[Row]) -> None:
    """Prints the rows as a table."""
    head = ("POLICY", "VERSION", "DIGEST", "PUBLISHED", "BY", "ALIASES", "PINNED", "SIGNATURES")
    print(
        columns(
            head,
            [
                (
                    row.policy, f"v{row.version}", short_digest(row.digest), row.published_at[:19], row.published_by,
                    ",".join(row.aliases), "yes" if row.pinned else "", str(row.signatures or ""),
                )
                for row in rows
            ],
        )
    )  # fmt: skip


def print_description(description: dict[str, Any]) -> None:
    """Prints a version as a page."""
    print(version_name(description["policy"], description["version"]), description["digest"])
    print(f"published   {description['published_at'][:19]} by {description['published_by']}")
    print(f"aliases     {', '.join(description['aliases']) or 'none'}")
    print(f"pinned      {'yes' if description['pinned'] else 'no'}")
    print(f"signatures  {description['signatures']}")
    print(f"engine      {_engine_line(description['card']['engine'])}")
    print(f"action      {_action_line(description['card'])}")
    print()
    files = [(file["name"], format_bytes(file["size_bytes"]), file["digest"]) for file in description["files"]]
    print(columns(("FILE", "SIZE", "DIGEST"), files))
    print()
    import yaml

    print(
        yaml.safe_dump(
            description["card"], sort_keys=False, allow_unicode=True, default_flow_style=None, width=110
        ).strip()
    )
    print()
    print_history([msgspec.convert(record, Record) for record in description["history"]])


def print_history(records: list[Record]) -> None:
    """Prints the audit log as a table."""
    rows = [
        (
            str(record.sequence),
            record.at[:19],
            record.by,
            record.action,
            _subject(record),
            f"v{record.was}" if record.was else "",
            record.reason,
        )
        for record in records
    ]
    print(columns(("NUMBER", "TIME", "BY", "ACTION", "VERSION", "BEFORE", "REASON"), rows))


def print_transfer(transfer: Transfer, way: str) -> None:
    """Prints what a transfer copied."""
    rows = [(str(each), each.digest, "copied") for each in transfer.carried]
    rows += [(str(each), each.digest, "already there") for each in transfer.present]
    print(columns(("VERSION", "DIGEST", ""), rows))
    print(
        f"{len(transfer.carried)} versions, {format_bytes(transfer.size_bytes)}, {transfer.attestations} attestations {way}"
    )


def print_collection(found: Collection, dry_run: bool) -> None:
    """Prints what a collection removed and kept."""
    rows = [
        (
            version_name(each.policy, each.version),
            short_digest(each.digest),
            each.claim or ("would be removed" if dry_run else "removed"),
        )
        for each in found.versions
    ]
    print(columns(("VERSION", "DIGEST", "KEPT BY"), rows))
    verb = "would free" if dry_run else "freed"
    print(f"{verb} {format_bytes(found.freed_bytes)} in {found.blobs} blobs, of {len(found.taken)} versions")


def _row(entry: Descriptor, aliases: dict[str, list[str]], pinned: set[str], signatures: dict[str, int]) -> Row:
    return Row(
        policy=entry.title,
        version=entry.version,
        digest=entry.digest,
        published_at=entry.annotations.get(CREATED, ""),
        published_by=entry.annotations.get(PUBLISHED_BY, ""),
        aliases=aliases.get(entry.digest, []),
        pinned=entry.digest in pinned,
        signatures=signatures.get(entry.digest, 0),
    )


def _engine_line(engine: dict[str, Any]) -> str:
    if engine["kind"] != "python":
        return str(engine["kind"])
    return f"python: {engine['entry_point']} of {engine['distribution']} {engine['requires']}".rstrip()


def _action_line(card: dict[str, Any]) -> str:
    action = next(output for output in card["outputs"] if output["name"] == ACTION)
    shape = f"{action['dtype']} {action['shape']}"
    return f"a chunk of {card['action_horizon']} actions, {shape}" if card["action_horizon"] else shape


def _subject(record: Record) -> str:
    name = version_name(record.policy, record.version) if record.version else record.policy
    return (
        f"{record.policy}@{record.alias} -> {f'v{record.version}' if record.version else 'nothing'}"
        if record.alias
        else name
    )
