"""Blobs: files named by the SHA-256 of their content. A reader gets exactly the bytes that were hashed."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pillion_artifacts.errors import DigestMismatchError, InvalidArtifactError, MissingFileError, StoreError
from pillion_artifacts.limits import CHUNK_BYTES
from pillion_artifacts.oci.manifest import Descriptor

Progress = Callable[[int], None]
"""Called with the number of bytes done since the last call."""


def blob_path(root: Path, digest: str) -> Path:
    """The path of the blob with that digest."""
    return root / "blobs" / "sha256" / digest.removeprefix("sha256:")


def no_progress(_count: int) -> None:
    """Reports no progress."""


@contextmanager
def open_regular(path: Path, what: str) -> Iterator[BinaryIO]:
    """Opens a regular file. Errors start with `what`.

    Raises `InvalidArtifactError` for a link, device, pipe or folder, `MissingFileError` if there is nothing, and
    `StoreError` if the file cannot be read.
    """
    try:
        # without O_NONBLOCK, opening a pipe would wait for a writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InvalidArtifactError(f"{what}: expected a file, got a symbolic link") from None
        if error.errno == errno.ENOENT:
            raise MissingFileError(f"{what}: {error.strerror}") from None
        if error.errno in (errno.ENOTDIR, errno.ENXIO):
            raise InvalidArtifactError(f"{what}: {error.strerror}") from None
        raise StoreError.from_os(what, error) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidArtifactError(f"{what}: expected a file, got something else")
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        try:
            yield file
        except OSError as error:
            raise StoreError.from_os(what, error) from None


@contextmanager
def open_blob(root: Path, descriptor: Descriptor, what: str) -> Iterator[BinaryIO]:
    """Opens a blob. Raises `DigestMismatchError` if its size is not the descriptor's, and as `open_regular`."""
    with open_regular(blob_path(root, descriptor.digest), what) as file:
        size = os.fstat(file.fileno()).st_size
        # checked before reading: hashing a file that is far too long takes time
        if size != descriptor.size:
            raise DigestMismatchError(f"{what} is not what was published: expected {descriptor.size} bytes, got {size}")
        yield file


def read_small(path: Path, bytes_max: int, what: str) -> bytes:
    """Reads a whole file. Raises `InvalidArtifactError` for more than `bytes_max` bytes, and as `open_regular`."""
    with open_regular(path, what) as file:
        check_size(os.fstat(file.fileno()).st_size, bytes_max, what)
        data = read_all(file)
    check_size(len(data), bytes_max, what)
    return data


def check_size(size: int, bytes_max: int, what: str) -> None:
    """Raises `InvalidArtifactError` for more than `bytes_max` bytes."""
    if size > bytes_max:
        raise InvalidArtifactError(f"{what}: expected at most {bytes_max} bytes, got {size}")


def read_all(file: BinaryIO) -> bytes:
    """Reads the rest of an unbuffered file."""
    parts = []
    while part := file.read(1 << 30):
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_blob(root: Path, descriptor: Descriptor, bytes_max: int, what: str) -> bytes:
    """Reads a blob into memory and hashes these bytes.

    Raises `DigestMismatchError` if they do not match `descriptor`, `InvalidArtifactError` if the file is missing or
    larger than `bytes_max`, and `StoreError` if it cannot be read.
    """
    check_size(descriptor.size, bytes_max, what)
    with open_blob(root, descriptor, what) as file:
        data = read_all(file)
    check_content(hashlib.sha256(data).hexdigest(), len(data), descriptor, what)
    return data


def check_blob(root: Path, descriptor: Descriptor, what: str, progress: Progress = no_progress) -> None:
    """Hashes a blob in chunks. Raises as `read_blob`."""
    with open_blob(root, descriptor, what) as file:
        digest, size = hash_file(file, progress)
    check_content(digest, size, descriptor, what)


def map_file(path: Path) -> memoryview:
    """Maps a file into memory, read-only."""
    with path.open("rb") as file:
        return map_descriptor(file.fileno())


def map_descriptor(descriptor: int) -> memoryview:
    """Maps an open file into memory, read-only. The caller may close the file afterwards."""
    if os.fstat(descriptor).st_size == 0:
        return memoryview(b"")
    # private, because older kernels refuse a shared mapping of sealed memory
    return memoryview(mmap.mmap(descriptor, 0, mmap.MAP_PRIVATE, mmap.PROT_READ))


def hash_file(file: BinaryIO, progress: Progress = no_progress) -> tuple[str, int]:
    """The hexadecimal SHA-256 and the size in bytes of the rest of `file`."""
    size = 0
    hashed = hashlib.sha256()
    for chunk in chunks_of(file):
        hashed.update(chunk)
        size += len(chunk)
        progress(len(chunk))
    return hashed.hexdigest(), size


def chunks_of(file: BinaryIO) -> Iterator[memoryview]:
    """The rest of `file` in chunks. All chunks share one buffer, which the next chunk overwrites."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while count := file.readinto(buffer):  # type: ignore[attr-defined]  # typeshed has it on the concrete classes only
        yield buffer[:count]


def write_all(descriptor: int, data: memoryview | bytes) -> None:
    """Writes all of `data`, in several calls if the kernel takes only parts."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def check_content(digest: str, size: int, descriptor: Descriptor, what: str) -> None:
    """Raises `DigestMismatchError` if a hexadecimal SHA-256 or a size is not the descriptor's."""
    if (f"sha256:{digest}", size) != (descriptor.digest, descriptor.size):
        raise DigestMismatchError(
            f"{what} is not what was published: "
            f"expected {descriptor.digest} ({descriptor.size} bytes), got sha256:{digest} ({size} bytes)"
        )
