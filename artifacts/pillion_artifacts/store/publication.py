"""Publication: copies, hashes and checks the files of a version before anyone can read them."""

from __future__ import annotations

import os
from pathlib import Path

from pillion_artifacts.card.content_checks import check_card, check_file, check_files
from pillion_artifacts.card.layers import CARD_NAME, KINDS, check_one_model, kind_of
from pillion_artifacts.errors import InvalidArtifactError, VersionExistsError
from pillion_artifacts.names import ref_name, version_name
from pillion_artifacts.oci.blobs import Progress, map_file
from pillion_artifacts.oci.manifest import (
    ARTIFACT_TYPE,
    CREATED,
    MANIFEST_MEDIA_TYPE,
    PUBLISHED_BY,
    REF_NAME,
    SUBJECT,
    TITLE,
    VERSION,
    AttestationManifest,
    Descriptor,
    Index,
    digest_of,
)
from pillion_artifacts.store.audit_log import AuditLog
from pillion_artifacts.store.transaction import Change, Staged


def stage_layers(change: Change, folder: Path, policy: str, version: str, progress: Progress) -> list[Descriptor]:
    """Copies the files of a version into the change, checks the copies, and returns their descriptors.

    Raises `InvalidArtifactError` for a missing, unknown or wrong file.
    """
    what = version_name(policy, version)
    _check_names(folder, what)
    present = [kind for kind in KINDS if kind.required or os.path.lexists(folder / kind.title)]
    staged = {
        kind.title: change.stage_file(folder / kind.title, kind.bytes_max, f"{what}: {kind.title}", progress)
        for kind in present
    }
    check_staged(staged, policy, version)
    return [
        Descriptor(kind.media_type, staged[kind.title].digest, staged[kind.title].size, {TITLE: kind.title})
        for kind in present
    ]


def check_staged(staged: dict[str, Staged], policy: str, version: str) -> None:
    """Raises `InvalidArtifactError` if one of the staged files, by name, should reach no loader."""
    what = version_name(policy, version)
    card = check_card(staged[CARD_NAME].path.read_bytes(), policy, version)
    check_files(staged, card, what)
    for title, copy in staged.items():
        check_file(map_file(copy.path), title, card, f"{what}: {title}")


def check_is_new(root: Path, index: Index, policy: str, version: str, digest: str) -> None:
    """Raises `VersionExistsError` if the version exists, or existed with other content.

    A version that `gc` removed may come back only with the same content.
    """
    entry = index.find(policy, version)
    if entry is not None:
        same = "the same content" if entry.digest == digest else f"this is {digest}"
        raise VersionExistsError(f"{version_name(policy, version)} is published already, as {entry.digest}; {same}")
    for record in AuditLog(root).records():
        published = record.action in ("publish", "import") and (record.policy, record.version) == (policy, version)
        if published and record.digest != digest:
            raise VersionExistsError(
                f"{version_name(policy, version)} was published before, as {record.digest}; a version never changes"
            )


def index_entry(policy: str, version: str, digest: str, size: int, at: str, by: str) -> Descriptor:
    """The index entry of a version."""
    annotations = {
        TITLE: policy,
        VERSION: version,
        REF_NAME: ref_name(policy, version),
        CREATED: at,
        PUBLISHED_BY: by,
    }
    return Descriptor(MANIFEST_MEDIA_TYPE, digest, size, annotations, ARTIFACT_TYPE)


def attestation_entry(manifest: AttestationManifest, data: bytes) -> Descriptor:
    """The index entry of an attestation."""
    annotations = {**manifest.annotations, SUBJECT: manifest.subject.digest}
    return Descriptor(MANIFEST_MEDIA_TYPE, digest_of(data), len(data), annotations, manifest.artifact_type)


def _check_names(folder: Path, what: str) -> None:
    if not folder.is_dir():
        raise InvalidArtifactError(f"{what}: expected a folder with a model and {CARD_NAME}, got {str(folder)!r}")
    for entry in sorted(folder.iterdir()):
        try:
            kind_of(entry.name)
        except InvalidArtifactError as error:
            raise InvalidArtifactError(f"{what}: {error}") from None
    # before anything is copied
    check_one_model((entry.name for entry in folder.iterdir()), what)
