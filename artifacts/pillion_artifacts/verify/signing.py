"""Signs versions. securesystemslib makes the signatures."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from pillion_artifacts.errors import ArtifactError, InvalidArtifactError
from pillion_artifacts.oci.manifest import (
    EMPTY_JSON,
    AttestationManifest,
    Descriptor,
    Index,
    decode_attestation,
    describe,
    digest_of,
    encode_attestation,
    encode_json,
)
from pillion_artifacts.store.audit_log import current_user
from pillion_artifacts.store.publication import attestation_entry
from pillion_artifacts.store.store import Resolved, Store
from pillion_artifacts.store.transaction import Change
from pillion_artifacts.verify.statement import ENVELOPE_MEDIA_TYPE, PAYLOAD_TYPE, Signed, make_statement
from pillion_artifacts.verify.verification import Verifier


class Signature(msgspec.Struct, frozen=True):
    """A signature of a version."""

    policy: str
    version: str
    digest: str
    key: str
    """The id of the key."""
    expires_at: datetime | None = None


def sign(
    store: Store, reference: str, signer: Any, *, expires_at: datetime | None = None, by: str = "", reason: str = ""
) -> Signature:
    """Verifies every byte of the version that `reference` means, and signs it; `signer` is securesystemslib's.

    Raises `InvalidArtifactError` for a damaged version.
    """
    from securesystemslib.dsse import Envelope

    resolved = store.resolve(reference)
    verdict = Verifier(store).verify(resolved)
    if not verdict.intact:
        raise InvalidArtifactError(f"a damaged version is not signed: {verdict.faults[0]}")
    predicate = Signed(store.now(), by or current_user(), expires_at, reason)
    envelope = Envelope(make_statement(str(resolved), resolved.digest, predicate), PAYLOAD_TYPE, {})
    try:
        key: str = envelope.sign(signer).keyid
    except Exception as error:  # noqa: BLE001 - drivers and cloud clients raise errors of their own
        raise ArtifactError(f"{resolved}: the key cannot sign: {type(error).__name__}: {error}") from None
    _attach(store, resolved, encode_json(envelope.to_dict()), by, reason or f"key {key}")
    return Signature(resolved.policy, resolved.version, resolved.digest, key, expires_at)


def _attach(store: Store, resolved: Resolved, envelope: bytes, by: str, reason: str) -> None:
    """Stores an envelope as an artifact that refers to the version."""
    with Change(store.root, str(resolved)) as change:
        layer = describe(envelope, ENVELOPE_MEDIA_TYPE, "envelope.dsse.json")
        size = len(store.read_manifest(resolved.digest, str(resolved)))
        subject = Descriptor("application/vnd.oci.image.manifest.v1+json", resolved.digest, size)
        data = encode_attestation(ENVELOPE_MEDIA_TYPE, layer, subject, {})
        for blob in (EMPTY_JSON, envelope, data):
            change.stage_blob(blob)
        with change.deciding():
            index: Index = change.read_index()
            if index.find(resolved.policy, resolved.version) is None:
                raise InvalidArtifactError(f"{resolved} was removed meanwhile")
            manifest: AttestationManifest = decode_attestation(data)
            change.write_index(index.replaced([*index.manifests, attestation_entry(manifest, data)]))
            record = store.record(
                "sign",
                by,
                reason,
                policy=resolved.policy,
                version=resolved.version,
                digest=digest_of(data),
            )
            change.commit([record])
