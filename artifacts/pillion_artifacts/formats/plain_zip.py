"""Plain zips: members as they are, one after the other, each described alike in its header and in the directory.

Two readers of a zip may see different members, if the zip has gaps, overlaps, comments, or headers that disagree. A plain
zip has none of these, so torch reads exactly the members that were checked here. `PlainZip` writes one;
`read_plain_zip` reads no other.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import BinaryIO, Final

from pillion_artifacts.errors import InvalidArtifactError
from pillion_artifacts.limits import CHUNK_BYTES, ZIP_MEMBERS_MAX, ZIP_NAME_CHARACTERS_MAX

MAGIC: Final = b"PK\x03\x04"

_LOCAL: Final = struct.Struct("<4s5H3L2H")
_ENTRY: Final = struct.Struct("<4s6H3L5H2L")
_END: Final = struct.Struct("<4s4H2LH")
_ENTRY_MAGIC: Final = b"PK\x01\x02"
_END_MAGIC: Final = b"PK\x05\x06"
_VERSION: Final = 20
_NEW_YEAR_1980: Final = 0x21
"""The earliest date of a zip. Without the time of writing, the same members have the same bytes."""

_NAME: Final = re.compile(r"[\w.+-][\w.+/-]*", re.ASCII)
_MEMBERS_SHORT: Final = 0xFFFF
_BYTES_SHORT: Final = 0xFFFFFFFF


def read_plain_zip(view: memoryview, what: str, cure: str = "") -> dict[str, memoryview]:
    """Returns the members of a plain zip by name, without copying them. Raises `InvalidArtifactError` for any other file.

    `cure` is what to do with a zip that is not plain; the error ends with it.
    """
    try:
        return _read(view)
    except (ValueError, struct.error, UnicodeDecodeError) as error:
        advice = f": {cure}" if cure and bytes(view[: len(MAGIC)]) == MAGIC else ""
        raise InvalidArtifactError(f"{what}: expected a plain zip, got {error}{advice}") from None


def _read(view: memoryview) -> dict[str, memoryview]:
    """Raises `ValueError` with what was got instead of a plain zip."""
    end = len(view) - _END.size
    if end < 0 or bytes(view[: len(MAGIC)]) != MAGIC:
        raise ValueError("a file that does not begin as a zip")
    magic, *disks, count, total, size, first, comment = _END.unpack_from(view, end)
    if magic != _END_MAGIC or comment or any(disks) or count != total or first + size != end:
        raise ValueError("a zip with something after its directory, or with a part of it elsewhere")
    if count > ZIP_MEMBERS_MAX:
        raise ValueError(f"{count} members, more than {ZIP_MEMBERS_MAX}")
    members: dict[str, memoryview] = {}
    at, entry = 0, first
    for _ in range(count):
        name, content, at, entry = _member(view, at, entry)
        if name in members:
            raise ValueError(f"two members {name!r}")
        members[name] = content
    if at != first or entry != end:
        raise ValueError("a zip with bytes between its members")
    return members


def _member(view: memoryview, at: int, entry: int) -> tuple[str, memoryview, int, int]:
    """The name and content of the member at `at` with the directory's entry at `entry`, and where the next ones are."""
    magic, _, *fields, length, extra, comment, disk, _, _, offset = _ENTRY.unpack_from(view, entry)
    name = bytes(view[entry + _ENTRY.size : entry + _ENTRY.size + length]).decode("ascii")
    if magic != _ENTRY_MAGIC or len(name) != length or not is_plain_name(name):
        raise ValueError(f"a member {name[:ZIP_NAME_CHARACTERS_MAX]!r}")
    _, flags, method, _, _, _, stored, size = fields
    if flags or method or extra or comment or disk or stored != size or offset != at:
        raise ValueError(f"{name!r}, which is compressed, encrypted, annotated, or elsewhere")
    local_magic, *local_fields, local_length, local_extra = _LOCAL.unpack_from(view, at)
    start = at + _LOCAL.size + length
    same = local_fields == fields and bytes(view[at + _LOCAL.size : start]).decode("ascii") == name
    if local_magic != MAGIC or local_extra or local_length != length or not same or start + size > len(view):
        raise ValueError(f"{name!r}, whose header and directory differ")
    return name, view[start : start + size], start + size, entry + _ENTRY.size + length


def is_plain_name(name: str) -> bool:
    """Whether a member may have that name: a relative path of letters, digits and `_.+-/`."""
    return (
        len(name) <= ZIP_NAME_CHARACTERS_MAX
        and _NAME.fullmatch(name) is not None
        and not {"", ".", ".."} & set(name.split("/"))
    )


class PlainZip:
    """Writes a plain zip to a file, from its beginning on. The same members in the same order have the same bytes.

    Raises `ValueError` for a name or size that a plain zip cannot have. The caller calls `finish`, and owns the file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._entries: list[bytes] = []
        self._at = 0

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Writes a member."""
        if not is_plain_name(name) or len(self._entries) >= min(ZIP_MEMBERS_MAX, _MEMBERS_SHORT):
            raise ValueError(f"expected at most {ZIP_MEMBERS_MAX} members with plain names, got {name!r}")
        if self._at + len(content) > _BYTES_SHORT:
            raise ValueError(f"expected at most {_BYTES_SHORT} bytes in all, got more")
        encoded = name.encode("ascii")
        fields = (_VERSION, 0, 0, 0, _NEW_YEAR_1980, _checksum(content), len(content), len(content), len(encoded))
        header = _LOCAL.pack(MAGIC, *fields, 0) + encoded
        self._entries.append(_ENTRY.pack(_ENTRY_MAGIC, _VERSION, *fields, 0, 0, 0, 0, 0, self._at) + encoded)
        self._file.write(header)
        self._file.write(content)
        self._at += len(header) + len(content)

    def finish(self) -> None:
        """Writes the directory."""
        directory = b"".join(self._entries)
        count = len(self._entries)
        self._file.write(directory + _END.pack(_END_MAGIC, 0, 0, count, count, len(directory), self._at, 0))


def _checksum(content: bytes | memoryview) -> int:
    checksum = 0
    view = memoryview(content)
    for first in range(0, len(view), CHUNK_BYTES):
        checksum = zlib.crc32(view[first : first + CHUNK_BYTES], checksum)
    return checksum
