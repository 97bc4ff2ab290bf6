"""Buckets of S3, or of another object store that obstore supports, with an OCI layout in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from pillion_artifacts.errors import InvalidNameError, RemoteError, VersionExistsError, first_line
from pillion_artifacts.limits import BUCKET_TRIES_MAX, CHUNK_BYTES, ERROR_CHARACTERS_MAX
from pillion_artifacts.names import version_name
from pillion_artifacts.oci.layouts import blob_name
from pillion_artifacts.oci.manifest import EMPTY_INDEX, Descriptor, Index, decode_index, encode_json
from pillion_artifacts.oci.remote_interface import Chunks
from pillion_artifacts.store.transaction import LAYOUT, LAYOUT_NAME

_INDEX_NAME: Final = "index.json"
_SCHEMES: Final = ("s3://", "gs://", "az://", "memory://")


class BucketFiles:
    """The files of a bucket. `url` is `s3://BUCKET/PREFIX`; keys, region and endpoint come from AWS's variables."""

    def __init__(self, url: str) -> None:
        self.where = url
        self.bucket = open_bucket(url)

    def chunks(self, path: str) -> Iterator[memoryview]:
        import obstore
        from obstore.exceptions import BaseError

        try:
            for part in obstore.get(self.bucket, path).stream(min_chunk_size=CHUNK_BYTES):
                yield memoryview(part)
        except (BaseError, FileNotFoundError) as error:
            raise RemoteError(f"{self.where}: {path}: {_line(error)}") from None


class BucketTarget:
    """Writes versions to a bucket: blobs first, the index last.

    The index is written by compare-and-swap, so that concurrent pushes lose nothing.
    """

    def __init__(self, url: str) -> None:
        self._where = url
        self._bucket = open_bucket(url)
        self._entries: list[Descriptor] = []

    def put_blob(self, policy: str, descriptor: Descriptor, chunks: Chunks) -> None:
        import obstore
        from obstore.exceptions import BaseError

        path = blob_name(descriptor.digest)
        try:
            if self._size_of(path) != descriptor.size:
                # the next chunk overwrites the buffer before obstore has sent it
                obstore.put(self._bucket, path, (bytes(chunk) for chunk in chunks))
        except BaseError as error:
            raise RemoteError(f"{self._where}: {path}: {_line(error)}") from None

    def put_version(self, entry: Descriptor, manifest: bytes) -> None:
        self.put_blob(entry.title, entry, iter([manifest]))
        self._entries.append(entry)

    def put_attestation(self, policy: str, entry: Descriptor, manifest: bytes) -> None:
        self.put_blob(policy, entry, iter([manifest]))
        self._entries.append(entry)

    def finish(self) -> None:
        """Writes the index. Raises `VersionExistsError` if the bucket has such a version with other content."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        for _ in range(BUCKET_TRIES_MAX):
            try:
                index, mode = self._read_index()
                obstore.put(self._bucket, LAYOUT_NAME, LAYOUT)
                obstore.put(self._bucket, _INDEX_NAME, encode_json(self._merged(index)), mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                continue
            except BaseError as error:
                raise RemoteError(f"{self._where}: {_INDEX_NAME}: {_line(error)}") from None
            return
        raise RemoteError(f"{self._where}: {_INDEX_NAME}: others changed it during all {BUCKET_TRIES_MAX} attempts")

    def _merged(self, index: Index) -> Index:
        for entry in self._entries:
            existing = index.find(entry.title, entry.version) if entry.title else None
            if existing is not None and existing.digest != entry.digest:
                name = version_name(entry.title, entry.version)
                raise VersionExistsError(f"{self._where}: {name} exists already, as {existing.digest}")
        known = {entry.digest for entry in index.manifests}
        return index.replaced([*index.manifests, *(entry for entry in self._entries if entry.digest not in known)])

    def _read_index(self) -> tuple[Index, Any]:
        """The current index, and the condition for overwriting it."""
        import obstore

        try:
            result = obstore.get(self._bucket, _INDEX_NAME)
        except FileNotFoundError:
            return EMPTY_INDEX, "create"
        known = {key: result.meta[key] for key in ("e_tag", "version")}
        return decode_index(bytes(result.bytes())), {key: value for key, value in known.items() if value is not None}

    def _size_of(self, path: str) -> int | None:
        import obstore

        try:
            return obstore.head(self._bucket, path)["size"]
        except FileNotFoundError:
            return None


def is_bucket(url: str) -> bool:
    """Whether `url` names a bucket."""
    return url.startswith(_SCHEMES)


def open_bucket(url: str) -> Any:
    """Opens a bucket. Raises `InvalidNameError` for another URL, `RemoteError` if the bucket cannot be opened."""
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    if not is_bucket(url):
        raise InvalidNameError(f"expected s3://BUCKET/PREFIX, got {url!r}")
    try:
        return from_url(url)
    except (BaseError, ValueError) as error:
        raise RemoteError(f"{url}: {_line(error)}") from None


def _line(error: Exception) -> str:
    # object_store puts whole XML documents into one line
    return first_line(error)[:ERROR_CHARACTERS_MAX]
