"""Mends the store from what it holds twice: the index from the manifests, aliases and pins from the audit log.

What a damaged blob held is nowhere else in the store; such a version is put into quarantine, or fetched again from where
it was published to.
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
    """One repair of one store; `done` says what was done, a line each."""

    def __init__(self, store: Store, *, by: str = "", reason: str = "") -> None:
        self.done: list[str] = []
        self._store = store
        self._by = by
        self._reason = reason

    def run(self, damaged: list[Verdict]) -> None:
        """Mends what can be mended, and puts the `damaged` versions into quarantine. Raises `StoreError`."""
        root = self._store.root
        leftovers = [fault for fault in inspect_store(self._store) if fault.kind == "leftover"]
        with Change(root, f"{root}: repair") as change:
            self.done += [f"cleared away {fault.text}" for fault in leftovers]
            with change.deciding():
                faults = inspect_store(self._store)
                if not faults and not damaged:
                    return
                index = self._mend_index(change, faults)
                self._quarantine(change, index, damaged)
                self._mend_small_files(change, faults)
                self._clear(change, faults)
                change.commit([self._store.record("repair", self._by, self._reason or "; ".join(self.done))])

    def _mend_index(self, change: Change, faults: list[Fault]) -> Index:
        root = self._store.root
        if any(fault.kind == "layout" for fault in faults):
            change.write(LAYOUT_NAME, LAYOUT)
            self.done.append(f"wrote {LAYOUT_NAME}")
        if not any(fault.kind == "index" for fault in faults):
            return decode_index(read_small(root / INDEX_NAME, INDEX_BYTES_MAX, INDEX_NAME))
        index = rebuilt_index(root)
        change.write_index(index)
        self.done.append(f"wrote {INDEX_NAME} anew from {len(index.manifests)} manifests")
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
        self.done += [f"took {version_name(*name)} out of the index" for name in sorted(gone)]

    def _mend_small_files(self, change: Change, faults: list[Fault]) -> None:
        records = _readable_records(self._store.root)
        for fault in faults:
            policy, _, alias = fault.subject.partition("@")
            if fault.kind == "alias" and fault.subject.endswith(".json"):
                policy, alias = Path(fault.subject).parent.name, Path(fault.subject).stem
                self._mend_alias(change, policy, alias, records)
        if any(fault.kind == "pins" for fault in faults):
            change.write(PINS_NAME, encode_list(_pins_of(records)))
            self.done.append(f"wrote {PINS_NAME} anew from the audit log")
        for name in sorted({fault.subject for fault in faults if fault.kind in ("route", "evaluations")}):
            # The audit log has who and why, not every share: what was damaged is nowhere else.
            change.remove(name)
            self.done.append(f"removed {name}, which was not as the last change wrote it")

    def _mend_alias(self, change: Change, policy: str, alias: str, records: list[Record]) -> None:
        known = _alias_of(records, policy, alias)
        if known is None:
            change.remove(alias_target(policy, alias))
            self.done.append(f"removed {policy}@{alias}, which the audit log does not know")
            return
        change.write(alias_target(policy, alias), encode_alias(known))
        self.done.append(f"wrote {policy}@{alias} anew from the audit log: it points at {known.version}")

    def _clear(self, change: Change, faults: list[Fault]) -> None:
        # what seems to be an orphan by an index that is not to be believed is none
        is_certain = not any(fault.kind == "index" for fault in faults)
        for fault in faults:
            if fault.kind == "orphan" and is_certain:
                change.remove(f"blobs/sha256/{fault.subject.removeprefix('sha256:')}")
                self.done.append(f"removed {fault.text}")
            elif fault.kind == "blob" and fault.subject.startswith("sha256:"):
                change.quarantine(fault.subject)
                self.done.append(f"put into quarantine {fault.text}")
            elif fault.kind == "leftover" and "." in fault.subject and len(fault.subject) > 64:
                change.remove(f"{LOCKS_NAME}/{fault.subject}")


def rebuilt_index(root: Path) -> Index:
    """The index as the manifests and the audit log have it: what was published, and is there."""
    entries: dict[str, Descriptor] = {}
    attestations: list[tuple[Descriptor, str]] = []
    published = {record.digest: record for record in _readable_records(root) if record.action in ("publish", "import")}
    for path in sorted((root / "blobs" / "sha256").glob("*")):
        digest = f"sha256:{path.name}"
        with contextlib.suppress(ArtifactError):
            data = read_small(path, MANIFEST_BYTES_MAX, digest)
            if digest_of(data) == digest:
                _take(data, digest, published, entries, attestations)
    referring = [entry for entry, subject in attestations if subject in entries]
    return EMPTY_INDEX.replaced([*entries.values(), *referring])


def _take(
    data: bytes,
    digest: str,
    published: dict[str, Record],
    entries: dict[str, Descriptor],
    attestations: list[tuple[Descriptor, str]],
) -> None:
    """Sorts a blob among the versions or the attestations, where it is one."""
    try:
        manifest = decode_manifest(data)
    except InvalidArtifactError:
        attestation = decode_attestation(data)
        attestations.append((attestation_entry(attestation, data), attestation.subject.digest))
        return
    record = published.get(digest)
    # where there is a log, a manifest that it does not know was never published here
    if record is not None or not published:
        at, by = (record.at, record.by) if record else ("", "")
        entries[digest] = index_entry(manifest.policy, manifest.version, digest, len(data), at, by)


def _readable_records(root: Path) -> list[Record]:
    """The audit log up to the first line that cannot be read."""
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
