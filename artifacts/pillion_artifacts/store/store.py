"""The store: policy versions in an OCI image layout, published once, read with every byte checked."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import semver

from pillion_artifacts.card.content_checks import check_card, check_graph, check_model
from pillion_artifacts.card.layers import CARD_MEDIA_TYPE, CARD_NAME, KINDS, MODEL_NAME, LayerKind, kind_of
from pillion_artifacts.card.model_card import ModelCard
from pillion_artifacts.errors import (
    AliasMovedError,
    DigestMismatchError,
    HoldExistsError,
    InvalidArtifactError,
    MissingFileError,
    PolicyNotFoundError,
)
from pillion_artifacts.limits import CARD_BYTES_MAX, EVALUATION_HOLDS_MAX, INDEX_BYTES_MAX, MANIFEST_BYTES_MAX
from pillion_artifacts.names import (
    Reference,
    checked_alias,
    checked_policy,
    checked_version,
    parse_reference,
    spoken,
)
from pillion_artifacts.oci.blobs import Progress, blob_path, no_progress, read_blob, read_small
from pillion_artifacts.oci.manifest import (
    EMPTY_JSON,
    Descriptor,
    Index,
    Manifest,
    decode_index,
    decode_manifest,
    digest_of,
    encode_manifest,
)
from pillion_artifacts.store.aliases import Alias, alias_target, encode_alias, read_alias, read_aliases
from pillion_artifacts.store.audit_log import REASON_CHARACTERS_MAX, Action, AuditLog, AuditPage, Record
from pillion_artifacts.store.daemon_locks import DaemonLock
from pillion_artifacts.store.evaluation_holds import (
    EVALUATIONS_NAME,
    EvaluationHold,
    encode_evaluations,
    read_evaluations,
)
from pillion_artifacts.store.pins import PINS_NAME, Pin, encode_pins, read_pins
from pillion_artifacts.store.publication import check_is_new, index_entry, stage_layers
from pillion_artifacts.store.routes import Route, encode_routes, read_routes, route_target, with_route
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
    """The time that records are stamped with."""
    return datetime.now(UTC)


class Resolved(msgspec.Struct, frozen=True):
    """What a reference came to mean."""

    policy: str
    version: str
    digest: str
    """`sha256:` and 64 hexadecimal digits: the hash of the manifest, which hashes the rest."""

    def __str__(self) -> str:
        return spoken(self.policy, self.version)


class Artifact(msgspec.Struct, frozen=True):
    """A policy version whose every byte has been checked against its digest."""

    policy: str
    version: str
    digest: str
    """`sha256:` and 64 hexadecimal digits: the hash of the manifest, which hashes the rest."""
    card: ModelCard
    model: bytes
    """The ONNX file: these very bytes were hashed, so these and no others go to the loader."""
    files: dict[str, bytes] = {}
    """Its further files by name, checked likewise: `golden.safetensors`, `tuned.json`, a preprocessor."""


class Store:
    """The policies below `root`. Owns nothing that needs closing; safe to use from several threads and processes.

    Whoever changes it is named in the audit log: `by`, else user and host.
    """

    def __init__(self, root: Path, clock: Clock = utc_now) -> None:
        self.root = root
        self._clock = clock

    # Reading

    def index(self) -> Index:
        """All entries. Raises `PolicyNotFoundError` where there is no store."""
        settle_for_reading(self.root)
        self.check_is_there()
        try:
            return decode_index(read_small(self.root / INDEX_NAME, INDEX_BYTES_MAX, INDEX_NAME))
        except InvalidArtifactError as error:
            raise InvalidArtifactError(f"{self.root}: {error}") from None

    def policies(self) -> list[str]:
        """The names of all policies, sorted. Raises `PolicyNotFoundError` where there is no store."""
        return sorted({entry.title for entry in self.index().versions()})

    def versions(self, policy: str) -> list[str]:
        """The versions of a policy, oldest first. Raises `PolicyNotFoundError`."""
        return [entry.version for entry in _entries_of(self.index(), policy)]

    def resolve(self, reference: str) -> Resolved:
        """What `reference` (see `names`) means now. Raises `PolicyNotFoundError` or `InvalidArtifactError`.

        An alias or a digest is resolved without the index, in the same time whatever the store holds.
        """
        asked = parse_reference(reference)
        if asked.alias:
            settle_for_reading(self.root)
            alias = read_alias(self.root, asked.policy, asked.alias)
            return Resolved(alias.policy, alias.version, alias.digest)
        if asked.digest:
            manifest = self._read_pinned(asked)
            return Resolved(manifest.policy, manifest.version, asked.digest)
        entry = _newest_fitting(self.index(), asked)
        return Resolved(entry.title, entry.version, entry.digest)

    def load(self, reference: str) -> Artifact:
        """The version that `reference` means, read whole: every file once, and hashed as it was read.

        Raises `PolicyNotFoundError` or `InvalidArtifactError`.
        """
        return self.read(self.resolve(reference))

    def read(self, resolved: Resolved) -> Artifact:
        """The files of a version, checked; raises `InvalidArtifactError`."""
        manifest = self.manifest(resolved)
        whose = str(resolved)
        contents = {
            layer.title: read_blob(self.root, layer, kind_of(layer.title).bytes_max, f"{whose}: {layer.title}")
            for layer in manifest.layers
        }
        card = check_card(contents.pop(CARD_NAME), resolved.policy, resolved.version)
        model = contents.pop(MODEL_NAME)
        check_model(model, card, f"{whose}: {MODEL_NAME}")
        for title, data in contents.items():
            check_graph(data, title, f"{whose}: {title}")
        return Artifact(resolved.policy, resolved.version, resolved.digest, card, model, contents)

    def manifest(self, resolved: Resolved) -> Manifest:
        """The manifest of a version, checked; raises `InvalidArtifactError`."""
        manifest = decode_named(self.read_manifest(resolved.digest, str(resolved)), str(resolved))
        if (manifest.policy, manifest.version) != (resolved.policy, resolved.version):
            raise InvalidArtifactError(
                f"{resolved}: the manifest is that of {spoken(manifest.policy, manifest.version)}"
            )
        check_layers(manifest, str(resolved))
        return manifest

    def card(self, resolved: Resolved, manifest: Manifest) -> ModelCard:
        """The card of a version, checked; the rest of it is not read."""
        layer = manifest.layer(CARD_MEDIA_TYPE)
        data = read_blob(self.root, layer, CARD_BYTES_MAX, f"{resolved}: {CARD_NAME}")
        return check_card(data, resolved.policy, resolved.version)

    def read_manifest(self, digest: str, whose: str) -> bytes:
        """The bytes of a manifest, checked against its digest; raises `InvalidArtifactError`."""
        data = read_small(blob_path(self.root, digest), MANIFEST_BYTES_MAX, f"{whose}: manifest")
        if digest_of(data) != digest:
            raise DigestMismatchError(
                f"{whose}: manifest is not what was published: expected {digest}, got {digest_of(data)}"
            )
        return data

    def aliases(self, policy: str = "") -> list[Alias]:
        """The aliases of a policy, or of all."""
        settle_for_reading(self.root)
        return read_aliases(self.root, policy)

    def pins(self) -> list[Pin]:
        """The versions that `gc` leaves alone because somebody said so."""
        settle_for_reading(self.root)
        return read_pins(self.root)

    def history(self, policy: str = "") -> list[Record]:
        """The audit log, of a policy or of all, oldest first."""
        settle_for_reading(self.root)
        return [record for record in AuditLog(self.root).records() if policy in ("", record.policy)]

    def audit(self, policy: str, limit: int, before: int) -> AuditPage:
        """A page of the audit log; see `AuditLog.page`."""
        settle_for_reading(self.root)
        return AuditLog(self.root).page(policy, limit, before)

    def lock_version(self, reference: str) -> tuple[Resolved, DaemonLock]:
        """What `reference` means now, and a lock that keeps it from `gc`; the caller closes the lock.

        Raises `StoreError` where this process may not write to the store.
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

        Raises `VersionExistsError` where that version was published before, `InvalidArtifactError` for files that are
        not what they should be, `StoreError` where the file system refuses.
        """
        whose = spoken(checked_policy(policy), checked_version(version))
        version = checked_version(version)
        with Change(self.root, whose) as change:
            layers = stage_layers(change, folder, policy, version, progress)
            change.stage_blob(EMPTY_JSON)
            manifest = encode_manifest(policy, version, layers)
            digest = change.stage_blob(manifest)
            with change.deciding():
                index = change.read_index()
                check_is_new(self.root, index, policy, version, digest)
                record = self.record("publish", created_by, reason, policy=policy, version=version, digest=digest)
                entry = index_entry(policy, version, digest, len(manifest), record.at, record.by)
                change.write_index(index.replaced([*index.manifests, entry]))
                change.commit([record])
        return Resolved(policy, version, digest)

    def move_alias(
        self,
        policy: str,
        alias: str,
        to: str,
        *,
        expected: str,
        by: str = "",
        reason: str = "",
        action: Action = "alias",
    ) -> Alias:
        """Points an alias at the version that `to` means (a version, a range, another alias), if it points at `expected`.

        `expected` is the version that it points at now, or empty where there is no such alias yet. Raises
        `AliasMovedError` where it points elsewhere, `PolicyNotFoundError` where there is nothing to point at.
        """
        whose = f"{checked_policy(policy)}@{checked_alias(alias)}"
        with Change(self.root, whose) as change, change.deciding():
            target = self.resolve(f"{policy}@{to}")
            now = _current(self.root, policy, alias)
            actual = now.version if now else ""
            if actual != expected:
                raise AliasMovedError(
                    f"{whose}: expected it to point at {expected or 'nothing'}, it points at {actual or 'nothing'}"
                )
            fields = {"policy": policy, "alias": alias, "version": target.version, "digest": target.digest}
            record = self.record(action, by, reason, **fields, was=actual)
            moved = Alias(**fields, moved_at=record.at, moved_by=record.by, reason=record.reason)
            if now:
                moved = msgspec.structs.replace(moved, was_version=now.version, was_digest=now.digest)
            change.write(alias_target(policy, alias), encode_alias(moved))
            change.commit([record])
        return moved

    def remove_alias(self, policy: str, alias: str, *, expected: str, by: str = "", reason: str = "") -> None:
        """Takes an alias away, if it points at `expected`; raises as `move_alias`."""
        whose = f"{checked_policy(policy)}@{checked_alias(alias)}"
        with Change(self.root, whose) as change, change.deciding():
            now = read_alias(self.root, policy, alias)
            if now.version != expected:
                raise AliasMovedError(f"{whose}: expected it to point at {expected}, it points at {now.version}")
            change.remove(alias_target(policy, alias))
            change.commit([self.record("unalias", by, reason, policy=policy, alias=alias, was=now.version)])

    def roll_back(self, policy: str, alias: str, *, by: str = "", reason: str = "") -> Alias:
        """Points an alias at what it pointed at before its last move; a second time, at what it pointed at before that.

        Raises `PolicyNotFoundError` where the audit log knows of nothing before.
        """
        now = read_alias(self.root, policy, alias)
        before = self.before(now)
        if not before:
            raise PolicyNotFoundError(f"{policy}@{alias}: the audit log knows no version that it pointed at before")
        return self.move_alias(policy, alias, before, expected=now.version, by=by, reason=reason, action="rollback")

    def before(self, now: Alias) -> str:
        """The version that `roll_back` would point an alias at; empty where the audit log knows of none."""
        targets = _targets(self.history(now.policy), now.alias)
        return targets[-2] if len(targets) > 1 and targets[-1] == now.version else ""

    def pin(self, reference: str, *, by: str = "", reason: str = "") -> Pin:
        """Keeps `gc` from the version that `reference` means until `unpin`."""
        with Change(self.root, reference) as change, change.deciding():
            target = self.resolve(reference)
            fields = {"policy": target.policy, "version": target.version, "digest": target.digest}
            record = self.record("pin", by, reason, **fields)
            pin = Pin(**fields, at=record.at, by=record.by, reason=record.reason)
            kept = [each for each in read_pins(self.root) if each.digest != pin.digest]
            change.write(PINS_NAME, encode_pins([*kept, pin]))
            change.commit([record])
        return pin

    def unpin(self, reference: str, *, by: str = "", reason: str = "") -> Resolved:
        """Takes the pin out again; raises `PolicyNotFoundError` where there is none."""
        with Change(self.root, reference) as change, change.deciding():
            target = self.resolve(reference)
            pins = read_pins(self.root)
            kept = [pin for pin in pins if pin.digest != target.digest]
            if len(kept) == len(pins):
                raise PolicyNotFoundError(f"{target} is not pinned")
            change.write(PINS_NAME, encode_pins(kept))
            record = self.record(
                "unpin", by, reason, policy=target.policy, version=target.version, digest=target.digest
            )
            change.commit([record])
        return target

    # What daemons let be leased

    def keep_route(self, action: Action, route: Route, *, was: str = "", by: str = "", reason: str = "") -> None:
        """Keeps the route of a policy, in the place of what was kept for the same `asked`. Raises `StoreError`."""
        with Change(self.root, f"{route.policy}: route") as change, change.deciding():
            routes = with_route(read_routes(self.root, route.policy), route)
            change.write(route_target(checked_policy(route.policy)), encode_routes(routes))
            record = self.record(
                action, by, reason, policy=route.policy, version=route.version, digest=route.digest, was=was
            )
            change.commit([record])

    def evaluations(self, policy: str) -> list[EvaluationHold]:
        """The evaluation holds of a policy that hold now. Raises `InvalidArtifactError`."""
        settle_for_reading(self.root)
        now = self.now()
        return [hold for hold in read_evaluations(self.root) if hold.policy == policy and hold.until > now]

    def hold(self, target: Resolved, name: str, until: datetime, *, by: str = "", reason: str = "") -> EvaluationHold:
        """Holds a version for the campaign `name`; for the same version again, until another time.

        Raises `HoldExistsError` where the name is that of a hold on another version, or there are too many.
        """
        with Change(self.root, f"{target}: hold {name}") as change, change.deciding():
            now = self.now()
            kept = [hold for hold in read_evaluations(self.root) if hold.until > now]
            mine = [hold for hold in kept if hold.policy == target.policy]
            same = next((hold for hold in mine if hold.name == name), None)
            if same is not None and same.digest != target.digest:
                raise HoldExistsError(f"hold {name!r} holds {same.version}: end it first, or take another name")
            if same is None and len(mine) >= EVALUATION_HOLDS_MAX:
                raise HoldExistsError(f"expected at most {EVALUATION_HOLDS_MAX} holds of {target.policy}, got one more")
            fields = {"policy": target.policy, "version": target.version, "digest": target.digest}
            record = self.record("hold", by, f"{name}: {reason}".rstrip(": "), **fields)
            number = same.id if same else f"{name}-{_next_number(self.root)}"
            hold = EvaluationHold(number, name, **fields, at=record.at, until=until, by=record.by, reason=reason)
            change.write(EVALUATIONS_NAME, encode_evaluations([each for each in kept if each is not same] + [hold]))
            change.commit([record])
        return hold

    def end_hold(self, policy: str, name: str, *, by: str = "", reason: str = "") -> EvaluationHold:
        """Ends an evaluation hold, also one whose time is over; raises `PolicyNotFoundError` where there is none."""
        with Change(self.root, f"{policy}: hold {name}") as change, change.deciding():
            holds = read_evaluations(self.root)
            hold = next((each for each in holds if (each.policy, each.name) == (policy, name)), None)
            if hold is None:
                raise PolicyNotFoundError(f"policy {policy!r} has no evaluation hold {name!r}")
            change.write(EVALUATIONS_NAME, encode_evaluations([each for each in holds if each is not hold]))
            record = self.record(
                "end-hold", by, f"{name}: {reason}".rstrip(": "),
                policy=policy, version=hold.version, digest=hold.digest,
            )  # fmt: skip
            change.commit([record])
        return hold

    def note(self, action: Action, target: Resolved, *, was: str = "", by: str = "", reason: str = "") -> None:
        """Writes into the audit log what was done with a version outside the store: `stage`, `switch`, `route`, `shadow`, `drain`."""
        with Change(self.root, str(target)) as change, change.deciding():
            record = self.record(
                action, by, reason, policy=target.policy, version=target.version, digest=target.digest, was=was
            )
            change.commit([record])

    def now(self) -> datetime:
        """The time by this store's clock."""
        return self._clock()

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
        """A record of the audit log, still without its place in the chain."""
        at = self.now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return Record(0, at, by or who(), action, policy, version, digest, alias, was, reason[:REASON_CHARACTERS_MAX])

    def check_is_there(self) -> None:
        """Raises `PolicyNotFoundError` where there is no store."""
        # a store that lost its index is one that can be mended
        if not any((self.root / name).exists() for name in (INDEX_NAME, LAYOUT_NAME)):
            raise PolicyNotFoundError(f"there is no store at {self.root}")

    def _read_pinned(self, asked: Reference) -> Manifest:
        try:
            data = self.read_manifest(asked.digest, str(asked))
        except MissingFileError:
            raise PolicyNotFoundError(f"policy {asked.policy!r} has no version {asked.digest}") from None
        manifest = decode_named(data, str(asked))
        if manifest.policy != asked.policy:
            raise InvalidArtifactError(f"{asked}: the manifest is that of {manifest.policy}@{manifest.version}")
        return manifest


def who() -> str:
    """The user and the host that this process runs as."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def decode_named(data: bytes, whose: str) -> Manifest:
    """The manifest in `data`; raises `InvalidArtifactError` that begins with whose it is."""
    try:
        return decode_manifest(data)
    except InvalidArtifactError as error:
        raise InvalidArtifactError(f"{whose}: {error}") from None


def check_layers(manifest: Manifest, whose: str) -> None:
    """Raises `InvalidArtifactError` for a file that no version has, has twice, or that is called what it is not."""
    titles = [layer.title for layer in manifest.layers]
    for layer in manifest.layers:
        kind = _kind(layer.title, whose)
        if layer.media_type != kind.media_type or titles.count(layer.title) > 1:
            raise InvalidArtifactError(f"{whose}: manifest: expected one {layer.title} of type {kind.media_type}")
    for required in (kind for kind in KINDS if kind.required):
        if required.title not in titles:
            raise InvalidArtifactError(f"{whose}: manifest: expected one layer {required.title}, got none")


def _kind(title: str, whose: str) -> LayerKind:
    try:
        return kind_of(title)
    except InvalidArtifactError as error:
        raise InvalidArtifactError(f"{whose}: manifest: {error}") from None


def _entries_of(index: Index, policy: str) -> list[Descriptor]:
    entries = [entry for entry in index.versions() if entry.title == policy and semver.Version.is_valid(entry.version)]
    if not entries:
        held = ", ".join(sorted({entry.title for entry in index.versions()})) or "no policies"
        raise PolicyNotFoundError(f"policy {policy!r} is not in the store, which holds {held}")
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


def _current(root: Path, policy: str, alias: str) -> Alias | None:
    return next((each for each in read_aliases(root, policy) if each.alias == alias), None)


def _next_number(root: Path) -> int:
    last = AuditLog(root).last()
    return last.sequence + 1 if last else 1


def _targets(records: list[Record], alias: str) -> list[str]:
    """The versions that an alias pointed at, as a rollback sees them: it takes the last one away."""
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
