"""Repairs the store from redundant data: the index from the manifests, aliases and pins from the audit log.

The store has no second copy of a blob. A version with a damaged blob goes to quarantine, or is imported again from another
store.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from pillion_artifacts.errors import ArtifactError, InvalidArtifactError
from pillion_artifacts.limits import INDEX_BYTES_MAX, MANIFEST_BYTES_MAX
from pillion_artifacts.maintenance.inspection import Fault, inspect_store
from pillion_artifacts.names import version_name
from pillion_artifacts.oci.blobs import read_small
from pillion_artifacts.oci.manifest import (
    EMPTY_INDEX,
    Descriptor,
    Index,
    decode_attestation,
    decode_index,
    decode_manifest,
    digest_of,
)
from pillion_artifacts.store.aliases import Alias, alias_target, encode_alias
from pillion_artifacts.store.audit_log import AuditLog, Record
from pillion_artifacts.store.daemon_locks import LOCKS_NAME
from pillion_artifacts.store.pins import PINS_NAME, Pin
from pillion_artifacts.store.publication import attestation_entry, index_entry
from pillion_artifacts.store.state_files import encode_list
from pillion_artifacts.store.store import Store
from pillion_artifacts.store.transaction import INDEX_NAME, LAYOUT, LAYOUT_NAME, Change
from pillion_artifacts.verify.verification import Verdict


class Repair:
    """One repair of one store. `done` lists what it did, a line each."""

    def __init__(self, store: Store, *, by: str = "", reason: str = "") -> None:
        self.done: list[str] = []
        self._store = store
        self._by = by
        self._reason = reason

    def run(self, damaged: list[Verdict]) -> None:
        """Repairs what it can, and moves the `damaged` versions to quarantine. Raises `StoreError`."""
        root = self._store.root
        leftovers = [fault for fault in inspect_store(self._store) if fault.kind == "leftover"]
        with Change(root, f"{root}: repair") as change:
            self.done += [f"removed {fault.text}" for fault in leftovers]
            with change.deciding():
                faults = inspect_store(self._store)
                if not faults and not damaged:
                    return
                index = self._repair_index(change, faults)
                self._quarantine(change, index, damaged)
                self._repair_small_files(change, faults)
                self._clear(change, faults)
                change.commit([self._store.record("repair", self._by, self._reason or "; ".join(self.done))])

    def _repair_index(self, change: Change, faults: list[Fault]) -> Index:
        root = self._store.root
        if any(fault.kind == "layout" for fault in faults):
            change.write(LAYOUT_NAME, LAYOUT)
            self.done.append(f"wrote {LAYOUT_NAME}")
        if not any(fault.kind == "index" for fault in faults):
            return decode_index(read_small(root / INDEX_NAME, INDEX_BYTES_MAX, INDEX_NAME))
        index = rebuilt_index(root)
        change.write_index(index)
        self.done.append(f"rebuilt {INDEX_NAME} from {len(index.manifests)} manifests")
        return index

    def _quarantine(self, change: Change, index: Index, damaged: list[Verdict]) -> None:
        if not damaged:
            return
        gone = {(verdict.policy, verdict.version) for verdict in damaged}
        digests = {entry.digest for entry in index.versions() if (entry.title, entry.version) in gone}
        kept = [entry for entry in index.manifests if entry.digest not in digests and entry.subject not in digests]
        change.write_index(index.replaced(kept))
        for digest in digests:
            change.quarantine(digest)
        self.done += [f"removed {version_name(*name)} from the index" for name in sorted(gone)]

    def _repair_small_files(self, change: Change, faults: list[Fault]) -> None:
        records = _readable_records(self._store.root)
        for fault in faults:
            policy, _, alias = fault.subject.partition("@")
            if fault.kind == "alias" and fault.subject.endswith(".json"):
                policy, alias = Path(fault.subject).parent.name, Path(fault.subject).stem
                self._repair_alias(change, policy, alias, records)
        if any(fault.kind == "pins" for fault in faults):
            change.write(PINS_NAME, encode_list(_pins_of(records)))
            self.done.append(f"rebuilt {PINS_NAME} from the audit log")
        for name in sorted({fault.subject for fault in faults if fault.kind in ("route", "evaluations")}):
            # the audit log has no shares and no end times, so there is nothing to rebuild these files from
            change.remove(name)
            self.done.append(f"removed {name}, which differed from the last change")

    def _repair_alias(self, change: Change, policy: str, alias: str, records: list[Record]) -> None:
        known = _alias_of(records, policy, alias)
        if known is None:
            change.remove(alias_target(policy, alias))
            self.done.append(f"removed {policy}@{alias}, which the audit log does not have")
            return
        change.write(alias_target(policy, alias), encode_alias(known))
        self.done.append(f"restored {policy}@{alias} from the audit log: it points at {known.version}")

    def _clear(self, change: Change, faults: list[Fault]) -> None:
        # with a damaged index, any blob may look like an orphan
        is_certain = not any(fault.kind == "index" for fault in faults)
        for fault in faults:
            if fault.kind == "orphan" and is_certain:
                change.remove(f"blobs/sha256/{fault.subject.removeprefix('sha256:')}")
                self.done.append(f"removed {fault.text}")
            elif fault.kind == "blob" and fault.subject.startswith("sha256:"):
                change.quarantine(fault.subject)
                self.done.append(f"moved to quarantine {fault.text}")
            elif fault.kind == "leftover" and "." in fault.subject and len(fault.subject) > 64:
                change.remove(f"{LOCKS_NAME}/{fault.subject}")


def rebuilt_index(root: Path) -> Index:
    """Rebuilds the index from the manifests that are present, and the audit log."""
    entries: dict[str, Descriptor] = {}
    attestations: list[tuple[Descriptor, str]] = []
    published = {record.digest: record for record in _readable_records(root) if record.action in ("publish", "import")}
    for path in sorted((root / "blobs" / "sha256").glob("*")):
        digest = f"sha256:{path.name}"
        with contextlib.suppress(ArtifactError):
            data = read_small(path, MANIFEST_BYTES_MAX, digest)
            if digest_of(data) == digest:
                _classify(data, digest, published, entries, attestations)
    referring = [entry for entry, subject in attestations if subject in entries]
    return EMPTY_INDEX.replaced([*entries.values(), *referring])


def _classify(
    data: bytes,
    digest: str,
    published: dict[str, Record],
    entries: dict[str, Descriptor],
    attestations: list[tuple[Descriptor, str]],
) -> None:
    """Adds a blob to the versions or the attestations, if it is one of them."""
    try:
        manifest = decode_manifest(data)
    except InvalidArtifactError:
        attestation = decode_attestation(data)
        attestations.append((attestation_entry(attestation, data), attestation.subject.digest))
        return
    record = published.get(digest)
    # a manifest that the log does not have was never published here; without a log, all manifests count
    if record is not None or not published:
        at, by = (record.at, record.by) if record else ("", "")
        entries[digest] = index_entry(manifest.policy, manifest.version, digest, len(data), at, by)


def _readable_records(root: Path) -> list[Record]:
    """The audit log up to the first unreadable line."""
    records: list[Record] = []
    with contextlib.suppress(InvalidArtifactError):
        records.extend(AuditLog(root).records())
    return records


def _alias_of(records: list[Record], policy: str, alias: str) -> Alias | None:
    moves = [record for record in records if (record.policy, record.alias) == (policy, alias)]
    if not moves or moves[-1].action == "unalias":
        return None
    last = moves[-1]
    digests = {record.version: record.digest for record in moves if record.digest}
    return Alias(
        policy, alias, last.version, last.digest, last.at, last.by, last.reason, last.was, digests.get(last.was, "")
    )


def _pins_of(records: list[Record]) -> list[Pin]:
    pins: dict[str, Pin] = {}
    for record in records:
        if record.action == "pin":
            pins[record.digest] = Pin(record.policy, record.version, record.digest, record.at, record.by, record.reason)
        elif record.action in ("unpin", "collect"):
            pins.pop(record.digest, None)
    return list(pins.values())
