"""Reads the files of a source: regular files of a bounded size, and members of zips that are no bombs."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path
from typing import BinaryIO, Final

from pillion_artifacts.errors import InvalidArtifactError, InvalidSourceError
from pillion_artifacts.limits import SOURCE_BYTES_MAX, ZIP_BYTES_MAX, ZIP_MEMBERS_MAX
from pillion_artifacts.oci.blobs import check_size, hash_file, open_regular, read_small

PICKLE_MAGIC: Final = b"\x80"
ZIP_MAGIC: Final = b"PK\x03\x04"


def read_file(path: Path, bytes_max: int = SOURCE_BYTES_MAX) -> bytes:
    """Reads a regular file. Raises `InvalidSourceError` for a link, a device, a missing or too large file."""
    try:
        return read_small(path, bytes_max, path.name)
    except InvalidArtifactError as error:
        raise InvalidSourceError(str(error)) from None


@contextmanager
def open_source(path: Path, bytes_max: int = SOURCE_BYTES_MAX) -> Iterator[BinaryIO]:
    """Opens a regular file, without reading it whole. Raises as `read_file`."""
    try:
        with open_regular(path, path.name) as file:
            check_size(os.fstat(file.fileno()).st_size, bytes_max, path.name)
            yield file
    except InvalidArtifactError as error:
        raise InvalidSourceError(str(error)) from None


def digest_of_file(path: Path) -> str:
    """The digest of a file, which is read in chunks. Raises as `read_file`."""
    with open_source(path) as file:
        return f"sha256:{hash_file(file)[0]}"


class Archive:
    """A zip in memory, or in an open file. Raises `InvalidSourceError` if it is no zip, or a bomb."""

    def __init__(self, source: bytes | BinaryIO, what: str) -> None:
        self.what = what
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise InvalidSourceError(f"{what}: not a zip: {error}") from None
        members = self._zip.infolist()
        unpacked = sum(member.file_size for member in members)
        if len(members) > ZIP_MEMBERS_MAX or unpacked > ZIP_BYTES_MAX:
            raise InvalidSourceError(
                f"{what}: expected at most {ZIP_MEMBERS_MAX} members of {ZIP_BYTES_MAX} bytes in all, "
                f"got {len(members)} of {unpacked}"
            )
        self.names = [member.filename for member in members]

    @property
    def is_stored(self) -> bool:
        """Whether no member is compressed."""
        return all(member.compress_type == zipfile.ZIP_STORED for member in self._zip.infolist())

    def read(self, name: str, bytes_max: int = SOURCE_BYTES_MAX) -> bytes:
        """Reads a member. Raises `InvalidSourceError`."""
        if self.names.count(name) != 1:
            raise InvalidSourceError(f"{self.what}: expected one member {name!r}, got {self.names.count(name)}")
        if self._zip.getinfo(name).file_size > bytes_max:
            raise InvalidSourceError(f"{self.what}: {name}: expected at most {bytes_max} bytes")
        try:
            return self._zip.read(name)
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            RuntimeError,
            EOFError,
            OSError,
            zlib.error,
            LZMAError,
        ) as error:
            raise InvalidSourceError(f"{self.what}: {name}: {error}") from None
