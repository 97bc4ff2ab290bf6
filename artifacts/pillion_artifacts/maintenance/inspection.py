"""Inspects the store as a whole, for faults that belong to no single version."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Final, Literal

import msgspec

from pillion_artifacts.errors import UNREADABLE, ArtifactError, InvalidArtifactError
from pillion_artifacts.limits import INDEX_BYTES_MAX, LAYOUT_BYTES_MAX, MANIFEST_BYTES_MAX
from pillion_artifacts.names import is_alias_name, is_policy_name, version_name
from pillion_artifacts.oci.blobs import hash_file, open_regular, read_small
from pillion_artifacts.oci.manifest import (
    ARTIFACT_TYPE,
    Index,
    decode_attestation,
    decode_index,
    decode_manifest,
    digest_of,
)
from pillion_artifacts.store.aliases import ALIASES_NAME, read_alias
from pillion_artifacts.store.audit_log import AUDIT_NAME, AuditLog, Record
from pillion_artifacts.store.daemon_locks import stale_locks
from pillion_artifacts.store.evaluation_holds import EVALUATIONS_NAME
from pillion_artifacts.store.pins import PINS_NAME, read_pins
from pillion_artifacts.store.routes import ROUTES_NAME
from pillion_artifacts.store.store import Store
from pillion_artifacts.store.transaction import INDEX_NAME, INTENT_NAME, LAYOUT, LAYOUT_NAME, stale_stagings

Kind = Literal["layout", "index", "alias", "pins", "route", "evaluations", "audit", "blob", "orphan", "leftover"]

_KIND_OF: Final[dict[str, Kind]] = {
    INDEX_NAME: "index",
    LAYOUT_NAME: "layout",
    PINS_NAME: "pins",
    EVALUATIONS_NAME: "evaluations",
}

_DIGITS = re.compile(r"[0-9a-f]{64}")


class Fault(msgspec.Struct, frozen=True):
    """A fault of the store. Orphans and leftovers do no harm."""

    kind: Kind
    subject: str
    text: str

    @property
    def harmful(self) -> bool:
        return self.kind not in ("orphan", "leftover")


def inspect_store(store: Store) -> list[Fault]:
    """The faults of the index, aliases, pins and audit log, and unexpected files.

    `verification` checks the blobs that versions name; this checks only the others. The caller holds the lock, because
    a concurrent change would look like a leftover.
    """
    root = store.root
    index = _index(root)
    faults = _layout_faults(root) + (index if isinstance(index, list) else _index_faults(root, index))
    faults += _alias_faults(store, root)
    faults += [Fault("audit", AUDIT_NAME, text) for text in AuditLog(root).faults()]
    faults += _state_faults(root)
    if isinstance(index, Index):
        faults += _blob_faults(root, index)
    return faults + _leftovers(root)


def named_digests(root: Path, index: Index) -> tuple[set[str], list[str]]:
    """The blobs that the index names, and the errors of unreadable manifests, which may name more."""
    named = set[str]()
    unreadable = []
    for entry in index.manifests:
        named.add(entry.digest)
        path = root / "blobs" / "sha256" / entry.digest.removeprefix("sha256:")
        try:
            data = read_small(path, MANIFEST_BYTES_MAX, entry.digest)
            decode = decode_manifest if entry.artifact_type == ARTIFACT_TYPE else decode_attestation
            manifest = decode(data)
            if digest_of(data) != entry.digest:
                raise InvalidArtifactError(f"{entry.digest}: its bytes are those of {digest_of(data)}")
        except ArtifactError as error:
            unreadable.append(str(error))
            continue
        named |= {descriptor.digest for descriptor in [manifest.config, *manifest.layers]}
    return named, unreadable


def expected_files(records: list[Record]) -> dict[str, str]:
    """The hashes of the small files by the audit log, empty for a removed file."""
    expected: dict[str, str] = {}
    for record in records:
        expected |= record.files
    return expected


def _index(root: Path) -> Index | list[Fault]:
    try:
        return decode_index(read_small(root / INDEX_NAME, INDEX_BYTES_MAX, INDEX_NAME))
    except ArtifactError as error:
        return [Fault("index", INDEX_NAME, str(error))]


def _layout_faults(root: Path) -> list[Fault]:
    try:
        version = msgspec.json.decode(read_small(root / LAYOUT_NAME, LAYOUT_BYTES_MAX, LAYOUT_NAME))
    except (ArtifactError, *UNREADABLE) as error:
        return [Fault("layout", LAYOUT_NAME, f"{LAYOUT_NAME}: {error}")]
    if version != msgspec.json.decode(LAYOUT):
        return [Fault("layout", LAYOUT_NAME, f"{LAYOUT_NAME}: expected {LAYOUT.decode()}, got {version}")]
    return []


def _index_faults(root: Path, index: Index) -> list[Fault]:
    """Repeated names, and versions whose digest is another one in the audit log."""
    faults = []
    entries = index.versions()
    for name, count in Counter(version_name(entry.title, entry.version) for entry in entries).items():
        if count > 1:
            faults.append(Fault("index", name, f"{name}: it is {count} times in the index"))
    published = published_digests(root)
    for entry in entries:
        known = published.get((entry.title, entry.version), entry.digest)
        if known != entry.digest:
            name = version_name(entry.title, entry.version)
            faults.append(Fault("index", name, f"{name}: the index has {entry.digest}, the audit log has {known}"))
    return faults


def published_digests(root: Path) -> dict[tuple[str, str], str]:
    """The published digest of each version by the audit log, empty if the log is damaged."""
    try:
        records = list(AuditLog(root).records())
    except ArtifactError:
        return {}
    return {
        (record.policy, record.version): record.digest for record in records if record.action in ("publish", "import")
    }


def _alias_faults(store: Store, root: Path) -> list[Fault]:
    faults = []
    for path in sorted((root / ALIASES_NAME).glob("*/*")):
        policy, alias = path.parent.name, path.stem
        name = f"{policy}@{alias}"
        if not (is_policy_name(policy) and is_alias_name(alias) and path.suffix == ".json"):
            faults.append(Fault("alias", name, f"{ALIASES_NAME}/{policy}/{path.name}: it is no alias"))
            continue
        try:
            read_alias(root, policy, alias)
            store.manifest(store.resolve(name))
        except ArtifactError as error:
            faults.append(Fault("alias", name, f"the alias {name} is broken: {error}"))
    return faults


def _state_faults(root: Path) -> list[Fault]:
    """Small files that differ from what the last change wrote."""
    try:
        expected = expected_files(list(AuditLog(root).records()))
    except ArtifactError:
        return []
    faults = []
    for name, digest in sorted(expected.items()):
        path = root / name
        actual = digest_of(path.read_bytes()) if path.is_file() else ""
        if actual != digest:
            kind = _KIND_OF.get(name, "route" if name.startswith(f"{ROUTES_NAME}/") else "alias")
            what = "it is missing" if not actual else "it was edited or is damaged"
            faults.append(Fault(kind, name, f"{name}: {what}: the audit log does not have these bytes"))
    try:
        read_pins(root)
    except ArtifactError as error:
        faults.append(Fault("pins", PINS_NAME, str(error)))
    return faults


def _blob_faults(root: Path, index: Index) -> list[Fault]:
    """Files among the blobs that are none, and blobs that nothing names."""
    faults = []
    named, unreadable = named_digests(root, index)
    if unreadable:
        # an unreadable manifest may name any of them; the verdict of its version reports the fault
        return []
    for path in sorted((root / "blobs" / "sha256").glob("*")):
        digest = f"sha256:{path.name}"
        if digest in named:
            continue
        if _DIGITS.fullmatch(path.name) is None:
            faults.append(Fault("blob", path.name, f"blobs/sha256/{path.name}: it is no blob"))
            continue
        faults.append(_orphan_fault(path, digest))
    return faults


def _orphan_fault(path: Path, digest: str) -> Fault:
    what = f"blobs/sha256/{path.name}"
    try:
        with open_regular(path, what) as file:
            actual = f"sha256:{hash_file(file)[0]}"
    except ArtifactError as error:
        return Fault("blob", digest, str(error))
    if actual != digest:
        return Fault("blob", digest, f"{what}: its bytes are those of {actual}")
    return Fault("orphan", digest, f"{what}: nothing names it")


def _leftovers(root: Path) -> list[Fault]:
    faults = [Fault("leftover", name, f"staging/{name}: its owner is gone") for name in stale_stagings(root)]
    faults += [Fault("leftover", path.name, f"leases/{path.name}: its owner is gone") for path in stale_locks(root)]
    if (root / INTENT_NAME).exists():
        faults.append(Fault("leftover", INTENT_NAME, f"{INTENT_NAME}: a change was decided, but not carried out yet"))
    return faults
