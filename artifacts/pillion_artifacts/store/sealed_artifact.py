"""A version for a loader: its files in sealed memory that nobody can change, hashed while they were copied."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

import msgspec

from pillion_artifacts.card.content_checks import check_file, check_files
from pillion_artifacts.card.layers import CARD_MEDIA_TYPE, GOLDEN_NAME, kind_of, model_name
from pillion_artifacts.card.model_card import ModelCard
from pillion_artifacts.errors import StoreError
from pillion_artifacts.oci.blobs import check_content, check_size, chunks_of, map_descriptor, open_blob, write_all
from pillion_artifacts.oci.manifest import Descriptor
from pillion_artifacts.store.store import Resolved, Store

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


class SealedArtifact(msgspec.Struct, frozen=True):
    """A policy version whose every byte has been checked against its digest. Owns its descriptors; `close` closes them."""

    policy: str
    version: str
    digest: str
    """`sha256:` and 64 hexadecimal digits: the hash of the manifest, which hashes the rest."""
    card: ModelCard
    files: dict[str, int]
    """A sealed memfd for each file except the card, by name. Child processes do not inherit them."""

    @property
    def model(self) -> int:
        """The memfd of the model file of the card's engine."""
        return self.files[model_name(self.card.engine.kind)]

    @property
    def golden(self) -> int:
        """The memfd of the golden pairs, -1 if there are none."""
        return self.files.get(GOLDEN_NAME, -1)

    def close(self) -> None:
        """Frees the memory."""
        for descriptor in self.files.values():
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def seal_artifact(store: Store, resolved: Resolved) -> SealedArtifact:
    """Reads a version into sealed memory, with the checks of `Store.read`. Needs one chunk of other memory.

    Raises `InvalidArtifactError`, and `StoreError` if there is not enough memory. The caller closes the result.
    """
    manifest = store.manifest(resolved)
    card = store.card(resolved, manifest)
    check_files([layer.title for layer in manifest.layers], card, str(resolved))
    sealed = SealedArtifact(resolved.policy, resolved.version, resolved.digest, card, {})
    try:
        for layer in manifest.layers:
            if layer.media_type != CARD_MEDIA_TYPE:
                _seal_layer(store, layer, sealed, f"{resolved}: {layer.title}")
    except BaseException:
        sealed.close()
        raise
    return sealed


def _seal_layer(store: Store, layer: Descriptor, sealed: SealedArtifact, what: str) -> None:
    """Copies a file into `sealed`, and checks the copy as publication does."""
    check_size(layer.size, kind_of(layer.title).bytes_max, what)
    hashed = hashlib.sha256()
    with open_blob(store.root, layer, what) as file, _sealing(what) as descriptor:
        sealed.files[layer.title] = descriptor
        for chunk in chunks_of(file):
            hashed.update(chunk)
            write_all(descriptor, chunk)
    check_content(hashed.hexdigest(), os.fstat(descriptor).st_size, layer, what)
    content = map_descriptor(descriptor)
    check_file(content, layer.title, sealed.card, what)


@contextmanager
def _sealing(what: str = "artifact") -> Iterator[int]:
    """Makes a memfd for the block to write to, and seals it afterwards."""
    descriptor = os.memfd_create("pillion-artifact", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        yield descriptor
    except OSError as error:
        raise StoreError.from_os(what, error) from None
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
