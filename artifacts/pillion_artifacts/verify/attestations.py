"""What was said about a version, as artifacts of their own that refer to it (OCI calls them referrers)."""

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
    """The envelopes of one attestation about a version, hashed; raises `InvalidArtifactError`."""
    what = f"{resolved}: attestation"
    manifest = decode_attestation(store.read_manifest(entry.digest, what))
    if manifest.subject.digest != resolved.digest:
        raise InvalidArtifactError(f"{what}: it is about {manifest.subject.digest}")
    return [
        read_blob(store.root, layer, ATTESTATION_BYTES_MAX, what)
        for layer in manifest.layers
        if layer.media_type == ENVELOPE_MEDIA_TYPE
    ]


def read_envelopes(store: Store, resolved: Resolved) -> tuple[list[Any], list[str]]:
    """The envelopes of a version, read and hashed, and a line for each one that cannot be read."""
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
        except Exception as error:  # noqa: BLE001 - the library does not say what it raises for what is no envelope
            faults.append(f"{resolved}: attestation: no DSSE envelope: {type(error).__name__}: {error}")
    return envelopes, faults
