"""Archives for machines without a network: an OCI layout in a plain tar (`oci-archive` in other tools).

The tar is not compressed: weights hardly compress, and an uncompressed file cannot be a bomb.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pillion_artifacts.errors import InvalidArtifactError, RemoteError
from pillion_artifacts.limits import (
    ARCHIVE_BYTES_MAX,
    ARCHIVE_MEMBERS_MAX,
    CHUNK_BYTES,
    INDEX_BYTES_MAX,
    MODEL_BYTES_MAX,
)
from pillion_artifacts.oci.blobs import open_regular
from pillion_artifacts.oci.layouts import blob_name
from pillion_artifacts.oci.manifest import EMPTY_INDEX, Descriptor, encode_json
from pillion_artifacts.oci.remote_interface import Chunks
from pillion_artifacts.store.transaction import LAYOUT, LAYOUT_NAME, refusals

_BLOB = re.compile(r"blobs/sha256/[0-9a-f]{64}")
_FOLDERS: Final = {".", "blobs", "blobs/sha256"}
_MODE: Final = 0o444


class ArchiveFiles:
    """The files of a tar. Owns the open file. Checks the name and type of every member before it reads any."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._context = open_regular(path, self.where)
        self._file = self._context.__enter__()
        try:
            self._tar = tarfile.open(fileobj=self._file, mode="r:")  # noqa: SIM115 - `close` closes it
            self._members = self._read_members()
        except (tarfile.TarError, EOFError, ValueError) as error:
            self.close()
            raise InvalidArtifactError(f"{self.where}: expected an uncompressed tar: {error}") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file."""
        self._context.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def chunks(self, path: str) -> Iterator[bytes]:
        member = self._members.get(path)
        if member is None:
            raise RemoteError(f"{self.where}: it has no {path}")
        left = member.size
        with refusals(self.where):
            self._file.seek(member.offset_data)
            while left and (chunk := self._file.read(min(left, CHUNK_BYTES))):
                left -= len(chunk)
                yield chunk
        if left:
            raise InvalidArtifactError(f"{self.where}: {path}: expected {left} bytes more")

    def _read_members(self) -> dict[str, tarfile.TarInfo]:
        members: dict[str, tarfile.TarInfo] = {}
        total = 0
        for member in self._tar:
            name = _checked(member, self.where)
            total += member.size
            if total > ARCHIVE_BYTES_MAX or len(members) >= ARCHIVE_MEMBERS_MAX:
                raise InvalidArtifactError(f"{self.where}: expected at most {ARCHIVE_BYTES_MAX} bytes, got more")
            if name in members:
                raise InvalidArtifactError(f"{self.where}: {name!r} is in it twice")
            if member.isfile():
                members[name] = member
        return members


class ArchiveTarget:
    """Writes a tar, which appears complete or not at all. Owns its temporary file until `finish`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: list[Descriptor] = []
        self._written = set[str]()
        with refusals(str(path)):
            descriptor, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
        self._temporary = Path(name)
        self._file = os.fdopen(descriptor, "wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - `finish`
        self._add(LAYOUT_NAME, len(LAYOUT), iter([LAYOUT]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def put_blob(self, policy: str, descriptor: Descriptor, chunks: Chunks) -> None:
        if descriptor.digest not in self._written:
            self._written.add(descriptor.digest)
            self._add(blob_name(descriptor.digest), descriptor.size, chunks)

    def put_version(self, entry: Descriptor, manifest: bytes) -> None:
        self._entries.append(entry)
        self.put_blob(entry.title, entry, iter([manifest]))

    def put_attestation(self, policy: str, entry: Descriptor, manifest: bytes) -> None:
        self._entries.append(entry)
        self.put_blob(policy, entry, iter([manifest]))

    def finish(self) -> None:
        """Writes the index and renames the file to its final name."""
        index = encode_json(EMPTY_INDEX.replaced(self._entries))
        self._add("index.json", len(index), iter([index]))
        with refusals(str(self._path)):
            self._tar.close()
            self._file.flush()
            os.fchmod(self._file.fileno(), 0o644)
            os.fsync(self._file.fileno())
            self._temporary.replace(self._path)

    def _add(self, name: str, size: int, chunks: Chunks) -> None:
        """Writes a member without owner or time, so that the same versions make the same archive."""
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, _MODE
        with refusals(str(self._path)):
            self._tar.addfile(member, _ChunkReader(chunks))


class _ChunkReader(io.RawIOBase):
    """Chunks as a file that tarfile can read."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._left = memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        parts = bytearray()
        while size < 0 or len(parts) < size:
            if not self._left:
                self._left = memoryview(next(self._chunks, b""))
                if not self._left:
                    break
            taken = len(self._left) if size < 0 else size - len(parts)
            parts += self._left[:taken]
            self._left = self._left[taken:]
        return bytes(parts)


def _checked(member: tarfile.TarInfo, where: str) -> str:
    """The name of a member without a leading `./`. Raises `InvalidArtifactError` for a member that no layout has."""
    name = member.name.removeprefix("./").rstrip("/") or "."
    if member.isdir() and name in _FOLDERS:
        return name
    if not member.isreg() or member.issparse():
        raise InvalidArtifactError(f"{where}: expected files only, got {_kind(member)} {member.name!r}")
    if name not in ("index.json", LAYOUT_NAME) and _BLOB.fullmatch(name) is None:
        raise InvalidArtifactError(f"{where}: expected the files of an OCI layout, got {member.name!r}")
    bytes_max = INDEX_BYTES_MAX if name == "index.json" else MODEL_BYTES_MAX
    if member.size > bytes_max:
        raise InvalidArtifactError(f"{where}: {name}: expected at most {bytes_max} bytes, got {member.size}")
    return name


def _kind(member: tarfile.TarInfo) -> str:
    kinds = ((member.issym(), "the symbolic link"), (member.islnk(), "the link"), (member.isdir(), "the folder"))
    if member.issparse():
        return "the sparse file"
    return next((kind for is_it, kind in kinds if is_it), "the device")
