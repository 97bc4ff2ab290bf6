"""A plain zip has one reading: whatever it is read by sees the same members, or it is refused."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillion_artifacts import InvalidArtifactError
from pillion_artifacts.formats.plain_zip import PlainZip, read_plain_zip

MEMBERS = {"model/a.json": b"{}", "model/data/weight_0": bytes(range(200)), "model/empty": b""}


def plain(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    made = PlainZip(file)
    for name, content in members.items():
        made.write(name, content)
    made.finish()
    return file.getvalue()


def read(data: bytes) -> dict[str, bytes]:
    return {name: bytes(content) for name, content in read_plain_zip(memoryview(data), "it").items()}


def by_library(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_what_is_written_is_read_back_here_and_by_the_library() -> None:
    data = plain(MEMBERS)
    assert read(data) == by_library(data) == MEMBERS


def test_the_same_members_have_the_same_bytes() -> None:
    assert plain(MEMBERS) == plain(dict(MEMBERS))
    assert plain(MEMBERS) != plain({**MEMBERS, "model/empty": b"!"})


def with_comment(data: bytes) -> bytes:
    return data[:-2] + struct.pack("<H", 3) + b"PK\x05"


def with_a_gap(data: bytes) -> bytes:
    """Bytes between the members and the directory, which the end's offset accounts for."""
    first = struct.unpack_from("<L", data, len(data) - 6)[0]
    moved = data[:first] + b"xx" + data[first:]
    return moved[:-6] + struct.pack("<L", first + 2) + moved[-2:]


def compressed(_: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in MEMBERS.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda _: b"", "does not begin as a zip"),
        (lambda data: b"PK" + data, "does not begin as a zip"),
        (lambda data: data + b"x", "something after its directory"),
        (with_comment, "something after its directory"),
        (with_a_gap, "bytes between its members"),
        (compressed, "compressed, encrypted, annotated"),
        (lambda data: data.replace(b"model/a.json", b"model/b.json", 1), "header and directory differ"),
        (lambda data: data.replace(b"model/empty", b"model/../ab"), r"a member 'model/\.\./ab'"),
        (lambda data: data.replace(b"model/a.json", b"model/\xff.json"), "'ascii' codec"),
    ],
)
def test_any_other_zip_is_refused(spoil: Callable[[bytes], bytes], message: str) -> None:
    with pytest.raises(InvalidArtifactError, match=rf"^it: expected a plain zip, got .*{message}"):
        read(spoil(plain(MEMBERS)))


def test_a_name_twice_is_refused() -> None:
    data = plain({"model/a": b"1", "model/b": b"2"}).replace(b"model/b", b"model/a")
    with pytest.raises(InvalidArtifactError, match="two members 'model/a'"):
        read(data)


@pytest.mark.parametrize("name", ["", "/a", "a//b", "a/../b", "a\\b", "a\n", "ä", "a" * 300])
def test_a_name_that_is_no_plain_path_is_not_written(name: str) -> None:
    with pytest.raises(ValueError, match="plain names"):
        PlainZip(io.BytesIO()).write(name, b"")


@given(st.binary(max_size=200))
def test_any_bytes_are_members_or_an_error(data: bytes) -> None:
    try:
        read(data)
    except InvalidArtifactError:
        return


@given(st.integers(0, len(plain(MEMBERS)) - 1), st.integers(0, 255))
def test_what_is_accepted_after_damage_is_what_the_library_reads(at: int, value: int) -> None:
    data = bytearray(plain(MEMBERS))
    data[at] = value
    try:
        members = read(bytes(data))
    except InvalidArtifactError:
        return
    try:
        assert members == by_library(bytes(data))
    except zipfile.BadZipFile as error:
        # the library notices a wrong checksum, which the digest of the whole file covers
        assert "CRC" in str(error)  # noqa: PT017 - either outcome is right
