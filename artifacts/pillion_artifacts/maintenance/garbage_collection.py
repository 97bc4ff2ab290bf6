"""Garbage collection: removes versions that nothing claims, and blobs that no manifest names."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Literal

import msgspec
import semver

from pillion_artifacts.errors import InvalidArtifactError
from pillion_artifacts.maintenance.inspection import named_digests
from pillion_artifacts.oci.manifest import CREATED, Descriptor, Index
from pillion_artifacts.store.aliases import read_aliases
from pillion_artifacts.store.daemon_locks import LOCKS_NAME, locked_digests, stale_locks
from pillion_artifacts.store.evaluation_holds import held_digests
from pillion_artifacts.store.pins import read_pins
from pillion_artifacts.store.routes import routed_digests
from pillion_artifacts.store.store import Store
from pillion_artifacts.store.transaction import Change

_DIGITS = re.compile(r"[0-9a-f]{64}")

Claim = Literal["alias", "before an alias", "route", "pin", "evaluation", "daemon", "young", "newest", ""]


class Kept(msgspec.Struct, frozen=True):
    """A version, and the claim that keeps it. Without a claim it is garbage."""

    policy: str
    version: str
    digest: str
    claim: Claim


class Collection(msgspec.Struct, frozen=True):
    """All versions with their claims, and what the collection freed or would free."""

    versions: list[Kept]
    blobs: int
    freed_bytes: int

    @property
    def taken(self) -> list[Kept]:
        return [version for version in self.versions if not version.claim]


def collect(
    store: Store,
    *,
    grace: timedelta,
    keep_newest: int,
    dry_run: bool = False,
    by: str = "",
    reason: str = "",
) -> Collection:
    """Removes versions without a claim (see `Claim`), and blobs that no manifest names.

    Keeps versions younger than `grace`, and the `keep_newest` newest releases of each policy. With `dry_run` nothing is
    removed. Raises `StoreError` if the file system refuses.
    """
    root = store.root
    with Change(root, f"{root}: gc") as change, change.deciding():
        index = change.read_index()
        versions = _claims(store, index, store.now() - grace, keep_newest)
        gone = {version.digest for version in versions if not version.claim}
        left = index.replaced([entry for entry in index.manifests if not _is_of(entry, gone)])
        orphans = _unnamed(store, left)
        found = Collection(versions, len(orphans), sum(orphans.values()))
        if dry_run or not (gone or orphans):
            return found
        if gone:
            change.write_index(left)
        for name in orphans:
            change.remove(f"blobs/sha256/{name}")
        for path in stale_locks(root):
            change.remove(f"{LOCKS_NAME}/{path.name}")
        change.commit(
            [
                store.record("collect", by, reason, policy=each.policy, version=each.version, digest=each.digest)
                for each in found.taken
            ]
            or [store.record("collect", by, reason or f"{len(orphans)} blobs that nothing named")]
        )
    return found


def _claims(store: Store, index: Index, young_from: datetime, keep_newest: int) -> list[Kept]:
    root = store.root
    aliases = read_aliases(root)
    claims: list[tuple[Claim, set[str]]] = [
        ("alias", {alias.digest for alias in aliases}),
        ("before an alias", {alias.was_digest for alias in aliases}),
        ("route", routed_digests(root)),
        ("pin", {pin.digest for pin in read_pins(root)}),
        ("evaluation", held_digests(root, store.now())),
        ("daemon", locked_digests(root)),
        ("young", {entry.digest for entry in index.versions() if _is_young(entry, young_from)}),
        ("newest", _newest(index, keep_newest)),
    ]
    return [
        Kept(
            entry.title,
            entry.version,
            entry.digest,
            next((claim for claim, held in claims if entry.digest in held), ""),
        )
        for entry in index.versions()
    ]


def _is_young(entry: Descriptor, young_from: datetime) -> bool:
    try:
        return datetime.fromisoformat(entry.annotations[CREATED]) > young_from
    except (KeyError, ValueError):
        # of unknown age, so it is kept
        return True


def _newest(index: Index, count: int) -> set[str]:
    """The digests of the newest releases of each policy."""
    found = set[str]()
    by_policy: dict[str, list[tuple[semver.Version, str]]] = {}
    for entry in index.versions():
        version = semver.Version.parse(entry.version)
        if not version.prerelease:
            by_policy.setdefault(entry.title, []).append((version, entry.digest))
    for releases in by_policy.values():
        releases.sort(key=lambda release: release[0], reverse=True)
        found |= {digest for _, digest in releases[:count]}
    return found


def _is_of(entry: Descriptor, gone: set[str]) -> bool:
    return entry.digest in gone or entry.subject in gone


def _unnamed(store: Store, index: Index) -> dict[str, int]:
    """The sizes of the blobs that nothing in the index names. Raises `InvalidArtifactError` if a manifest is damaged."""
    named, unreadable = named_digests(store.root, index)
    if unreadable:
        raise InvalidArtifactError(f"{store.root}: nothing is collected while a manifest is damaged: {unreadable[0]}")
    return {
        path.name: path.lstat().st_size
        for path in sorted((store.root / "blobs" / "sha256").glob("*"))
        if _DIGITS.fullmatch(path.name) and f"sha256:{path.name}" not in named
    }
