"""Blobs: files named by the SHA-256 of their content. Whoever reads one gets the very bytes that were hashed."""

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
"""Is told how many bytes more are done."""


def blob_path(root: Path, digest: str) -> Path:
    """Where the blob of that digest lies."""
    return root / "blobs" / "sha256" / digest.removeprefix("sha256:")


def no_progress(_count: int) -> None:
    """Tells nobody."""


@contextmanager
def open_regular(path: Path, what: str) -> Iterator[BinaryIO]:
    """The file at `path`, which is a file: no link, device, pipe or folder. Raises `InvalidArtifactError`, and
    `MissingFileError` where there is none.

    `what` is what the error is about. What is wrong with the reading itself comes as `StoreError`.
    """
    try:
        # without O_NONBLOCK the opening of a pipe would wait for a writer
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
    """The file of a blob, as long as `descriptor` says; raises as `open_regular`, and `DigestMismatchError`."""
    with open_regular(blob_path(root, descriptor.digest), what) as file:
        size = os.fstat(file.fileno()).st_size
        # before a byte is read: a file that is far too long is not worth its time
        if size != descriptor.size:
            raise DigestMismatchError(f"{what} is not what was published: expected {descriptor.size} bytes, got {size}")
        yield file


def read_small(path: Path, bytes_max: int, what: str) -> bytes:
    """The whole of a file that has at most `bytes_max` bytes. Raises as `open_regular`, and for what is larger."""
    with open_regular(path, what) as file:
        check_size(os.fstat(file.fileno()).st_size, bytes_max, what)
        data = read_all(file)
    check_size(len(data), bytes_max, what)
    return data


def check_size(size: int, bytes_max: int, what: str) -> None:
    """Raises `InvalidArtifactError` for more bytes than there may be."""
    if size > bytes_max:
        raise InvalidArtifactError(f"{what}: expected at most {bytes_max} bytes, got {size}")


def read_all(file: BinaryIO) -> bytes:
    """What is left of an unbuffered file."""
    parts = []
    while part := file.read(1 << 30):
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_blob(root: Path, descriptor: Descriptor, bytes_max: int, what: str) -> bytes:
    """The bytes of a blob, hashed after they were read: these very bytes are checked.

    Raises `DigestMismatchError` where they are not what `descriptor` says, `InvalidArtifactError` where there is
    no such file or more than `bytes_max`, `StoreError` where it cannot be read.
    """
    check_size(descriptor.size, bytes_max, what)
    with open_blob(root, descriptor, what) as file:
        data = read_all(file)
    check_content(hashlib.sha256(data).hexdigest(), len(data), descriptor, what)
    return data


def check_blob(root: Path, descriptor: Descriptor, what: str, progress: Progress = no_progress) -> None:
    """Hashes a blob a chunk at a time; raises as `read_blob`."""
    with open_blob(root, descriptor, what) as file:
        digest, size = hash_file(file, progress)
    check_content(digest, size, descriptor, what)


def map_file(path: Path) -> memoryview:
    """The bytes of a file without a copy in memory."""
    with path.open("rb") as file:
        return map_descriptor(file.fileno())


def map_descriptor(descriptor: int) -> memoryview:
    """The same of a file that is open; it may be closed afterwards."""
    if os.fstat(descriptor).st_size == 0:
        return memoryview(b"")
    # private, since older kernels share no mapping of sealed memory
    return memoryview(mmap.mmap(descriptor, 0, mmap.MAP_PRIVATE, mmap.PROT_READ))


def hash_file(file: BinaryIO, progress: Progress = no_progress) -> tuple[str, int]:
    """The hexadecimal SHA-256 and the size of what is left of `file`."""
    size = 0
    hashed = hashlib.sha256()
    for chunk in chunks_of(file):
        hashed.update(chunk)
        size += len(chunk)
        progress(len(chunk))
    return hashed.hexdigest(), size


def chunks_of(file: BinaryIO) -> Iterator[memoryview]:
    """The rest of `file`, in one buffer that is used again and again."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while count := file.readinto(buffer):  # type: ignore[attr-defined]  # typeshed gives it to the classes alone
        yield buffer[:count]


def write_all(descriptor: int, data: memoryview | bytes) -> None:
    """Writes all of `data`, however the kernel divides it."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def check_content(digest: str, size: int, descriptor: Descriptor, what: str) -> None:
    """Raises `DigestMismatchError` for a hexadecimal SHA-256, or a size, that is not what was published."""
    if (f"sha256:{digest}", size) != (descriptor.digest, descriptor.size):
        raise DigestMismatchError(
            f"{what} is not what was published: "
            f"expected {descriptor.digest} ({descriptor.size} bytes), got sha256:{digest} ({size} bytes)"
        )
