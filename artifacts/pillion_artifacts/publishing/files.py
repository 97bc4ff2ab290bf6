"""Reads the files of a source: plain files of a bounded size, and members of zips that are no bombs."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import zipfile
import zlib
from lzma import LZMAError
from pathlib import Path

from pillion_artifacts.errors import InvalidSourceError
from pillion_artifacts.publishing.limits import ARCHIVE_BYTES_MAX, ARCHIVE_MEMBERS_MAX, SOURCE_BYTES_MAX


def read_file(path: Path, bytes_max: int = SOURCE_BYTES_MAX) -> bytes:
    """The bytes of a plain file; raises `InvalidSourceError` for links, devices, and what is too large."""
    descriptor = _open(path)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidSourceError(f"{path.name}: expected a plain file")
        if status.st_size > bytes_max:
            raise InvalidSourceError(f"{path.name}: expected at most {bytes_max} bytes, came {status.st_size}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to must not wait
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidSourceError(f"{path.name}: {error.strerror}") from None


def digest_of(data: bytes) -> str:
    """`sha256:` and 64 hexadecimal digits."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Archive:
    """A zip in memory whose members are read by name. Raises `InvalidSourceError` where it is none, or a bomb."""

    def __init__(self, data: bytes, what: str) -> None:
        self.what = what
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise InvalidSourceError(f"{what}: not a zip: {error}") from None
        members = self._zip.infolist()
        unpacked = sum(member.file_size for member in members)
        if len(members) > ARCHIVE_MEMBERS_MAX or unpacked > ARCHIVE_BYTES_MAX:
            raise InvalidSourceError(
                f"{what}: expected at most {ARCHIVE_MEMBERS_MAX} members of {ARCHIVE_BYTES_MAX} bytes in all, "
                f"came {len(members)} of {unpacked}"
            )
        self.names = [member.filename for member in members]

    @property
    def is_stored(self) -> bool:
        """Whether no member is compressed."""
        return all(member.compress_type == zipfile.ZIP_STORED for member in self._zip.infolist())

    def read(self, name: str, bytes_max: int = SOURCE_BYTES_MAX) -> bytes:
        """The bytes of a member; raises `InvalidSourceError`."""
        if self.names.count(name) != 1:
            raise InvalidSourceError(f"{self.what}: expected one member {name!r}, came {self.names.count(name)}")
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
