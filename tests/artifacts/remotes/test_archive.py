"""An archive transfers versions to another store. Any other content is refused."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pillion_artifacts import ArtifactError, InvalidArtifactError, PolicyNotFoundError, Store
from pillion_artifacts.errors import RemoteError, VersionExistsError
from pillion_artifacts.maintenance.inspection import inspect_store
from pillion_artifacts.oci.layouts import FolderFiles, LayoutSource
from pillion_artifacts.oci.manifest import digest_of
from pillion_artifacts.remotes.archive import ArchiveFiles, ArchiveTarget
from pillion_artifacts.remotes.transfer import Transfer, export_versions, import_versions
from tests.artifacts.support.stores import POLICY, example_card, example_model, flip
from tests.harness import STORE, blob_of, publish

Member = tuple[tarfile.TarInfo, bytes]


def write_archive(store: Store, file: Path, *references: str) -> Path:
    with ArchiveTarget(file) as target:
        export_versions(store, target, list(references))
    return file


def read_archive(store: Store, file: Path, *references: str) -> Transfer:
    with ArchiveFiles(file) as files:
        return import_versions(store, LayoutSource(files), list(references), where=str(file), by="a test")


@pytest.fixture
def origin(tmp_path: Path) -> Store:
    """A store with two versions of a policy."""
    for version in ("1.0.0", "1.1.0"):
        publish(tmp_path / "origin", POLICY, version, example_model(), example_card(version))
    return Store(tmp_path / "origin")


@pytest.fixture
def archive(origin: Store, tmp_path: Path) -> Path:
    """An archive with one version."""
    return write_archive(origin, tmp_path / "policy.tar", POLICY)


def test_what_was_exported_is_imported_with_the_same_digests(origin: Store, tmp_path: Path) -> None:
    file = write_archive(origin, tmp_path / "both.tar", f"{POLICY}@1.0.0", f"{POLICY}@1.1.0")
    other = Store(tmp_path / "other")
    taken = read_archive(other, file)
    assert [str(each) for each in taken.carried] == [f"{POLICY}@v1.0.0", f"{POLICY}@v1.1.0"]
    for version in ("1.0.0", "1.1.0"):
        assert other.load(f"{POLICY}@{version}") == origin.load(f"{POLICY}@{version}")
    assert inspect_store(other) == []
    assert [record.action for record in other.history()] == ["import", "import"]


def test_importing_again_changes_nothing_and_reports_it(archive: Path, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    read_archive(other, archive)
    before = (other.root / "index.json").read_bytes()
    again = read_archive(other, archive)
    assert ([str(each) for each in again.present], again.carried) == ([f"{POLICY}@v1.1.0"], [])
    assert (other.root / "index.json").read_bytes() == before
    assert len(other.history()) == 1


def test_the_same_versions_give_the_same_archive(origin: Store, archive: Path, tmp_path: Path) -> None:
    again = write_archive(origin, tmp_path / "again.tar", POLICY)
    assert again.read_bytes() == archive.read_bytes()


def test_one_version_of_several_can_be_imported(origin: Store, tmp_path: Path) -> None:
    file = write_archive(origin, tmp_path / "both.tar", f"{POLICY}@1.0.0", f"{POLICY}@1.1.0")
    other = Store(tmp_path / "other")
    read_archive(other, file, f"{POLICY}@<1.1")
    assert other.versions(POLICY) == ["1.0.0"]
    for reference in ("other", f"{POLICY}@9", f"{POLICY}@stable"):
        with pytest.raises(PolicyNotFoundError):
            read_archive(other, file, reference)


def test_an_oci_layout_in_a_folder_can_be_imported(origin: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    import_versions(other, LayoutSource(FolderFiles(STORE)), ["highway-fast"], where="the policies that ship")
    assert other.load("highway-fast").digest == Store(STORE).load("highway-fast").digest


def test_a_version_that_exists_with_other_content_is_refused_and_nothing_is_imported(
    archive: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    publish(other, POLICY, "1.1.0", example_model(), example_card("1.1.0") + "# other\n")
    before = (other / "index.json").read_bytes()
    with pytest.raises(VersionExistsError, match=r"lunar-lander@v1\.1\.0 is published already"):
        read_archive(Store(other), archive)
    assert (other / "index.json").read_bytes() == before


def test_a_damaged_version_is_not_exported(origin: Store, tmp_path: Path) -> None:
    flip(blob_of(origin.root, f"{POLICY}@1.1.0", "model.onnx"), 0.5)
    with pytest.raises(ArtifactError, match=r"lunar-lander@v1\.1\.0: model\.onnx is not what was published"):
        write_archive(origin, tmp_path / "damaged.tar", POLICY)
    assert [path.name for path in tmp_path.iterdir()] == ["origin"]


def rewritten(archive: Path, change: Callable[[list[Member]], list[Member]]) -> Path:
    """The archive with other members."""
    with tarfile.open(archive, "r:") as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    file = archive.with_name("rewritten.tar")
    with tarfile.open(file, "w") as tar:
        for member, data in change(members):
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data))
    return file


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b"x" if kind == tarfile.REGTYPE else b""


BLOB = f"blobs/sha256/{'0' * 64}"


@pytest.mark.parametrize(
    ("intruder", "message"),
    [
        (member("../escape"), r"expected the files of an OCI layout, got '\.\./escape'"),
        (member("blobs/sha256/../../../escape"), "expected the files of an OCI layout"),
        (member("/etc/passwd"), "expected the files of an OCI layout, got '/etc/passwd'"),
        (member("audit.jsonl"), "expected the files of an OCI layout"),
        (member(BLOB, tarfile.SYMTYPE, "/etc/passwd"), "expected files only, got the symbolic link"),
        (member("blobs", tarfile.SYMTYPE, "/etc"), "expected files only, got the symbolic link"),
        (member(BLOB, tarfile.LNKTYPE, "index.json"), "expected files only, got the link"),
        (member(BLOB, tarfile.CHRTYPE), "expected files only, got the device"),
        (member(BLOB, tarfile.BLKTYPE), "expected files only, got the device"),
        (member(BLOB, tarfile.FIFOTYPE), "expected files only, got the device"),
        (member("elsewhere", tarfile.DIRTYPE), "expected files only, got the folder"),
        (member("index.json"), "'index.json' is in it twice"),
    ],
    ids=lambda value: value[0].name if isinstance(value, tuple) else "",
)
def test_members_that_no_layout_has_are_refused(archive: Path, tmp_path: Path, intruder: Member, message: str) -> None:
    file = rewritten(archive, lambda members: [*members, intruder])
    with pytest.raises(InvalidArtifactError, match=message):
        read_archive(Store(tmp_path / "other"), file)
    assert not (tmp_path / "other").exists()
    assert not (tmp_path / "escape").exists()


def test_a_device_in_place_of_the_archive_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InvalidArtifactError, match="expected a file, got something else"):
            read_archive(Store(tmp_path / "other"), path)
    (tmp_path / "link").symlink_to(STORE / "index.json")
    with pytest.raises(InvalidArtifactError, match="got a symbolic link"):
        read_archive(Store(tmp_path / "other"), tmp_path / "link")


def test_a_bomb_is_not_inflated(archive: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.tar.gz"
    bomb.write_bytes(gzip.compress(archive.read_bytes() + bytes(50_000_000)))
    with pytest.raises(InvalidArtifactError, match=r"bomb\.tar\.gz: expected an uncompressed tar"):
        read_archive(Store(tmp_path / "other"), bomb)


def test_a_member_of_10_gb_is_refused_before_it_is_read(archive: Path, tmp_path: Path) -> None:
    info = tarfile.TarInfo(BLOB)
    info.size = 10_000_000_000
    file = tmp_path / "sparse.tar"
    file.write_bytes(archive.read_bytes().rstrip(b"\0") + b"")
    with tarfile.open(archive, "r:") as tar:
        end = max(member.offset_data + -(-member.size // 512) * 512 for member in tar)
    with file.open("wb") as out:
        out.write(archive.read_bytes()[:end] + info.tobuf(tarfile.GNU_FORMAT))
        out.truncate(end + 512 + info.size + 1024)
    with pytest.raises(InvalidArtifactError, match=f"{BLOB}: expected at most 2147483647 bytes, got 10000000000"):
        read_archive(Store(tmp_path / "other"), file)


def test_a_truncated_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    for part in (0, 100, 1_000, len(whole) // 2, len(whole) - 12_000):
        archive.write_bytes(whole[:part])
        with pytest.raises((InvalidArtifactError, RemoteError), match=r"policy\.tar: "):
            read_archive(Store(tmp_path / "other"), archive)
    assert not (tmp_path / "other" / "index.json").exists()


@pytest.mark.parametrize("position", [0, 0.5, 1])
def test_a_flipped_bit_in_a_blob_of_an_archive_is_found(archive: Path, tmp_path: Path, position: float) -> None:
    def flipped(members: list[Member]) -> list[Member]:
        changed = []
        for info, data in members:
            if info.name.startswith("blobs/") and len(data) == len(example_model()):
                (tmp_path / "blob").write_bytes(data)
                flip(tmp_path / "blob", position)
                data = (tmp_path / "blob").read_bytes()  # noqa: PLW2901
            changed.append((info, data))
        return changed

    with pytest.raises(InvalidArtifactError, match=r"lunar-lander@v1\.1\.0: model\.onnx is not what was published"):
        read_archive(Store(tmp_path / "other"), rewritten(archive, flipped))
    assert not (tmp_path / "other" / "index.json").exists()


def test_a_missing_blob_of_an_archive_is_named(archive: Path, tmp_path: Path) -> None:
    model = digest_of(example_model()).removeprefix("sha256:")
    file = rewritten(archive, lambda members: [each for each in members if model not in each[0].name])
    with pytest.raises(RemoteError, match=f"it has no blobs/sha256/{model}"):
        read_archive(Store(tmp_path / "other"), file)


def test_an_archive_without_a_policy_is_refused(archive: Path, tmp_path: Path) -> None:
    empty = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
    file = rewritten(
        archive, lambda members: [(info, empty if info.name == "index.json" else data) for info, data in members]
    )
    with pytest.raises(RemoteError, match="it has no policy"):
        read_archive(Store(tmp_path / "other"), file)
