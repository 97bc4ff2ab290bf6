"""The store: policy versions in an OCI image layout, published once, read with every byte checked.

`Store` reads, and publishes. The functions beside each small file change it: `aliases`, `pins`, `evaluation_holds`, `routes`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import semver
from msgspec.structs import asdict

from pillion_artifacts.card.content_checks import check_card, check_file, check_files
from pillion_artifacts.card.layers import CARD_MEDIA_TYPE, CARD_NAME, kind_of, model_name
from pillion_artifacts.card.model_card import ModelCard
from pillion_artifacts.errors import DigestMismatchError, InvalidArtifactError, MissingFileError, PolicyNotFoundError
from pillion_artifacts.limits import CARD_BYTES_MAX, INDEX_BYTES_MAX, MANIFEST_BYTES_MAX, REASON_CHARACTERS_MAX
from pillion_artifacts.names import Reference, checked_policy, checked_version, parse_reference, version_name
from pillion_artifacts.oci.blobs import Progress, blob_path, no_progress, read_blob, read_small
from pillion_artifacts.oci.manifest import (
    EMPTY_JSON,
    Descriptor,
    Index,
    Manifest,
    decode_index,
    digest_of,
    encode_manifest,
)
from pillion_artifacts.store.aliases import Alias, read_alias, read_aliases
from pillion_artifacts.store.audit_log import Action, AuditLog, AuditPage, Record, current_user
from pillion_artifacts.store.daemon_locks import DaemonLock
from pillion_artifacts.store.evaluation_holds import EvaluationHold, read_evaluations
from pillion_artifacts.store.manifest_checks import check_layers, decode_named
from pillion_artifacts.store.pins import Pin, read_pins
from pillion_artifacts.store.publication import check_is_new, index_entry, stage_layers
from pillion_artifacts.store.transaction import (
    INDEX_NAME,
    LAYOUT_NAME,
    Change,
    locked,
    refusals,
    settle,
    settle_for_reading,
)
from pillion_artifacts.version_range import VersionRange

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The current time, as audit records have it."""
    return datetime.now(UTC)


class Resolved(msgspec.Struct, frozen=True):
    """The version that a reference means."""

    policy: str
    version: str
    digest: str
    """`sha256:` and 64 hexadecimal digits: the hash of the manifest, which hashes the rest."""

    def __str__(self) -> str:
        return version_name(self.policy, self.version)


class Artifact(msgspec.Struct, frozen=True):
    """A policy version whose every byte has been checked against its digest."""

    policy: str
    version: str
    digest: str
    """`sha256:` and 64 hexadecimal digits: the hash of the manifest, which hashes the rest."""
    card: ModelCard
    model: bytes
    """The model file of the card's engine. The loader gets exactly the bytes that were hashed."""
    files: dict[str, bytes] = {}
    """The other files by name, also checked: `golden.safetensors`, `tuned.json`, a preprocessor."""


class Store:
    """The policies below `root`. Owns nothing that needs closing; safe to use from several threads and processes.

    The audit log names the author of each change: `by`, or the user and host of this process.
    """

    def __init__(self, root: Path, clock: Clock = utc_now) -> None:
        self.root = root
        self._clock = clock

    # Reading

    def index(self) -> Index:
        """All entries. Raises `PolicyNotFoundError` if there is no store."""
        settle_for_reading(self.root)
        self.check_is_there()
        try:
            return decode_index(read_small(self.root / INDEX_NAME, INDEX_BYTES_MAX, INDEX_NAME))
        except InvalidArtifactError as error:
            raise InvalidArtifactError(f"{self.root}: {error}") from None

    def policies(self) -> list[str]:
        """The names of all policies, sorted. Raises `PolicyNotFoundError` if there is no store."""
        return sorted({entry.title for entry in self.index().versions()})

    def versions(self, policy: str) -> list[str]:
        """The versions of a policy, oldest first. Raises `PolicyNotFoundError`."""
        return [entry.version for entry in _entries_of(self.index(), policy)]

    def resolve(self, reference: str) -> Resolved:
        """Resolves a reference (see `names`). Raises `PolicyNotFoundError` or `InvalidArtifactError`.

        An alias or a digest does not need the index, so it takes the same time in a store of any size.
        """
        asked = parse_reference(reference)
        if asked.alias:
            settle_for_reading(self.root)
            alias = read_alias(self.root, asked.policy, asked.alias)
            return Resolved(alias.policy, alias.version, alias.digest)
        if asked.digest:
            manifest = self._read_by_digest(asked)
            return Resolved(manifest.policy, manifest.version, asked.digest)
        entry = _newest_fitting(self.index(), asked)
        return Resolved(entry.title, entry.version, entry.digest)

    def load(self, reference: str) -> Artifact:
        """Reads the version that `reference` means: each file once, and hashed as it was read.

        Raises `PolicyNotFoundError` or `InvalidArtifactError`.
        """
        return self.read(self.resolve(reference))

    def read(self, resolved: Resolved) -> Artifact:
        """Reads and checks all files of a version. Raises `InvalidArtifactError`."""
        manifest = self.manifest(resolved)
        what = str(resolved)
        contents = {
            layer.title: read_blob(self.root, layer, kind_of(layer.title).bytes_max, f"{what}: {layer.title}")
            for layer in manifest.layers
        }
        card = check_card(contents.pop(CARD_NAME), resolved.policy, resolved.version)
        check_files(contents, card, what)
        for title, data in contents.items():
            check_file(data, title, card, f"{what}: {title}")
        model = contents.pop(model_name(card.engine.kind))
        return Artifact(resolved.policy, resolved.version, resolved.digest, card, model, contents)

    def manifest(self, resolved: Resolved) -> Manifest:
        """Reads and checks the manifest of a version. Raises `InvalidArtifactError`."""
        manifest = decode_named(self.read_manifest(resolved.digest, str(resolved)), str(resolved))
        if (manifest.policy, manifest.version) != (resolved.policy, resolved.version):
            raise InvalidArtifactError(
                f"{resolved}: the manifest belongs to {version_name(manifest.policy, manifest.version)}"
            )
        check_layers(manifest, str(resolved))
        return manifest

    def card(self, resolved: Resolved, manifest: Manifest) -> ModelCard:
        """Reads and checks the card of a version, and no other file."""
        layer = manifest.layer(CARD_MEDIA_TYPE)
        data = read_blob(self.root, layer, CARD_BYTES_MAX, f"{resolved}: {CARD_NAME}")
        return check_card(data, resolved.policy, resolved.version)

    def read_manifest(self, digest: str, what: str) -> bytes:
        """Reads the bytes of a manifest and checks them against its digest. Raises `InvalidArtifactError`."""
        data = read_small(blob_path(self.root, digest), MANIFEST_BYTES_MAX, f"{what}: manifest")
        if digest_of(data) != digest:
            raise DigestMismatchError(
                f"{what}: manifest is not what was published: expected {digest}, got {digest_of(data)}"
            )
        return data

    def aliases(self, policy: str = "") -> list[Alias]:
        """The aliases of one policy, or of all policies."""
        settle_for_reading(self.root)
        return read_aliases(self.root, policy)

    def pins(self) -> list[Pin]:
        """The pins of all policies."""
        settle_for_reading(self.root)
        return read_pins(self.root)

    def evaluation_holds(self, policy: str) -> list[EvaluationHold]:
        """The active evaluation holds of a policy. Raises `InvalidArtifactError`."""
        settle_for_reading(self.root)
        now = self.now()
        return [hold for hold in read_evaluations(self.root) if hold.policy == policy and hold.until > now]

    def history(self, policy: str = "") -> list[Record]:
        """The audit log of one policy, or of all policies, oldest record first."""
        settle_for_reading(self.root)
        return [record for record in AuditLog(self.root).records() if policy in ("", record.policy)]

    def audit(self, policies: Collection[str], limit: int, before: int) -> AuditPage:
        """A page of the audit log; see `AuditLog.page`."""
        settle_for_reading(self.root)
        return AuditLog(self.root).page(policies, limit, before)

    def lock_version(self, reference: str) -> tuple[Resolved, DaemonLock]:
        """Resolves a reference and locks the version against `gc`; the caller closes the lock.

        Raises `StoreError` if this process may not write to the store.
        """
        self.check_is_there()
        with refusals(f"{self.root}: lock"), locked(self.root):
            settle(self.root)
            resolved = self.resolve(reference)
            return resolved, DaemonLock(self.root, resolved.digest)

    # Changing

    def publish(
        self,
        policy: str,
        version: str,
        folder: Path,
        *,
        created_by: str = "",
        reason: str = "",
        progress: Progress = no_progress,
    ) -> Resolved:
        """Publishes the files of `folder` (see `layers`) as a new version, which then never changes.

        Raises `VersionExistsError` if the version was published before, `InvalidArtifactError` for a wrong file,
        and `StoreError` if the file system refuses.
        """
        what = version_name(checked_policy(policy), checked_version(version))
        version = checked_version(version)
        # copying and checking take long, so the lock is only held for the decision
        with Change(self.root, what) as change:
            layers = stage_layers(change, folder, policy, version, progress)
            change.stage_blob(EMPTY_JSON)
            manifest = encode_manifest(policy, version, layers)
            published = Resolved(policy, version, change.stage_blob(manifest))
            with change.deciding():
                index = change.read_index()
                check_is_new(self.root, index, **asdict(published))
                record = self.record("publish", created_by, reason, **asdict(published))
                entry = index_entry(policy, version, published.digest, len(manifest), record.at, record.by)
                change.write_index(index.replaced([*index.manifests, entry]))
                change.commit([record])
        return published

    def note(self, action: Action, target: Resolved, *, was: str = "", by: str = "", reason: str = "") -> None:
        """Records an action outside the store: `stage`, `switch`, `route`, `shadow` or `drain`."""
        with self.change(str(target)) as change:
            change.commit([self.record(action, by, reason, **asdict(target), was=was)])

    @contextlib.contextmanager
    def change(self, what: str) -> Iterator[Change]:
        """Holds the store's lock for one change, which the block prepares and commits. Errors are about `what`."""
        with Change(self.root, what) as change, change.deciding():
            yield change

    def record(
        self,
        action: Action,
        by: str,
        reason: str,
        *,
        policy: str = "",
        version: str = "",
        digest: str = "",
        alias: str = "",
        was: str = "",
    ) -> Record:
        """An audit record without a number; `Change.commit` adds it to the chain."""
        at = self.now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        by, reason = by or current_user(), reason[:REASON_CHARACTERS_MAX]
        return Record(0, at, by, action, policy, version, digest, alias, was, reason)

    def now(self) -> datetime:
        """The time by this store's clock."""
        return self._clock()

    def check_is_there(self) -> None:
        """Raises `PolicyNotFoundError` if there is no store."""
        # a store without its index can be repaired, so the layout file is enough
        if not any((self.root / name).exists() for name in (INDEX_NAME, LAYOUT_NAME)):
            raise PolicyNotFoundError(f"there is no store at {self.root.absolute()}")

    def _read_by_digest(self, asked: Reference) -> Manifest:
        try:
            data = self.read_manifest(asked.digest, str(asked))
        except MissingFileError:
            raise PolicyNotFoundError(f"policy {asked.policy!r} has no version {asked.digest}") from None
        manifest = decode_named(data, str(asked))
        if manifest.policy != asked.policy:
            raise InvalidArtifactError(f"{asked}: the manifest belongs to {manifest.policy}@{manifest.version}")
        return manifest


def _entries_of(index: Index, policy: str) -> list[Descriptor]:
    """The versions of a policy, oldest first."""
    entries = [entry for entry in index.versions() if entry.title == policy and semver.Version.is_valid(entry.version)]
    if not entries:
        names = ", ".join(sorted({entry.title for entry in index.versions()})) or "no policies"
        raise PolicyNotFoundError(f"policy {policy!r} is not in the store, which holds {names}")
    return sorted(entries, key=lambda entry: semver.Version.parse(entry.version))


def _newest_fitting(index: Index, asked: Reference) -> Descriptor:
    try:
        wanted = VersionRange(asked.range_text)
    except ValueError as error:
        raise PolicyNotFoundError(str(error)) from None
    entries = _entries_of(index, asked.policy)
    fitting = [entry for entry in entries if entry.version in wanted]
    if not fitting:
        versions = ", ".join(entry.version for entry in entries[-8:])
        raise PolicyNotFoundError(
            f"policy {asked.policy!r} has no version that fits {asked.range_text or 'a release'!r}, it has {versions}"
        )
    return fitting[-1]
