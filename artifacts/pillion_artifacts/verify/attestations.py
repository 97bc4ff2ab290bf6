"""Attestations: signed statements about a version, stored as artifacts that refer to it (OCI's referrers)."""

from __future__ import annotations

from typing import Any

import msgspec

from pillion_artifacts.errors import ArtifactError, InvalidArtifactError
from pillion_artifacts.limits import ATTESTATION_BYTES_MAX, ATTESTATIONS_MAX
from pillion_artifacts.oci.blobs import read_blob
from pillion_artifacts.oci.manifest import Descriptor, decode_attestation
from pillion_artifacts.store.store import Resolved, Store
from pillion_artifacts.verify.statement import ENVELOPE_MEDIA_TYPE


def read_attestation(store: Store, resolved: Resolved, entry: Descriptor) -> list[bytes]:
    """Reads and hashes the envelopes of one attestation of a version. Raises `InvalidArtifactError`."""
    what = f"{resolved}: attestation"
    manifest = decode_attestation(store.read_manifest(entry.digest, what))
    if manifest.subject.digest != resolved.digest:
        raise InvalidArtifactError(f"{what}: its subject is {manifest.subject.digest}")
    return [
        read_blob(store.root, layer, ATTESTATION_BYTES_MAX, what)
        for layer in manifest.layers
        if layer.media_type == ENVELOPE_MEDIA_TYPE
    ]


def read_envelopes(store: Store, resolved: Resolved) -> tuple[list[Any], list[str]]:
    """Reads and hashes the envelopes of a version. Returns them, and a line for each one that cannot be read."""
    from securesystemslib.dsse import Envelope

    envelopes = []
    faults = []
    for entry in store.index().about(resolved.digest)[:ATTESTATIONS_MAX]:
        try:
            envelopes += [
                Envelope.from_dict(msgspec.json.decode(data, type=dict))
                for data in read_attestation(store, resolved, entry)
            ]
        except ArtifactError as error:
            faults.append(str(error))
        except Exception as error:  # noqa: BLE001 - the library does not document what it raises for invalid envelopes
            faults.append(f"{resolved}: attestation: no DSSE envelope: {type(error).__name__}: {error}")
    return envelopes, faults
