"""What was said about a version, as artifacts of their own that refer to it (OCI calls them referrers)."""

from __future__ import annotations

from pillion_artifacts.errors import InvalidArtifactError
from pillion_artifacts.limits import ATTESTATION_BYTES_MAX
from pillion_artifacts.oci.blobs import read_blob
from pillion_artifacts.oci.manifest import Descriptor, decode_attestation
from pillion_artifacts.store.store import Resolved, Store
from pillion_artifacts.verify.statement import ENVELOPE_MEDIA_TYPE


def read_attestation(store: Store, resolved: Resolved, entry: Descriptor) -> list[bytes]:
    """The envelopes of one attestation about a version, hashed; raises `InvalidArtifactError`."""
    whose = f"{resolved}: attestation"
    manifest = decode_attestation(store.read_manifest(entry.digest, whose))
    if manifest.subject.digest != resolved.digest:
        raise InvalidArtifactError(f"{whose}: it is about {manifest.subject.digest}")
    return [
        read_blob(store.root, layer, ATTESTATION_BYTES_MAX, whose)
        for layer in manifest.layers
        if layer.media_type == ENVELOPE_MEDIA_TYPE
    ]
