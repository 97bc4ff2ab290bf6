"""The cache of built engines: what is not as this user wrote it is never given out, and it stays within its bound."""

from __future__ import annotations

import errno
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pillion_worker.builds.cache import BuildCache
from pillion_worker.errors import EngineError
from pillion_worker.limits import BUILD_LEFT_S
from pilliond.limits import BUILD_S_MAX

KEY = {"model": "abc", "gpu": "Stub 1", "rows": [1, 4, 4]}
ENGINE = os.urandom(1_000)


@pytest.fixture
def cache(tmp_path: Path) -> BuildCache:
    return BuildCache(str(tmp_path / "new" / "cache"), 10_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "new" / "cache"


def the_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_what_was_written_is_read_by_the_same_key_alone(cache: BuildCache, folder: Path) -> None:
    cache.write(KEY, ENGINE)
    assert cache.read(dict(reversed(KEY.items()))) == ENGINE
    for name in KEY:
        with pytest.raises(EngineError, match="none was built for this model, device and software"):
            cache.read({**KEY, name: "another"})
    assert folder.stat().st_mode & 0o777 == 0o700
    assert the_file(folder).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("at", [0, 3, 60, -1_000, -1])
def test_a_damaged_engine_is_removed(cache: BuildCache, folder: Path, at: int) -> None:
    cache.write(KEY, ENGINE)
    file = the_file(folder)
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
    with pytest.raises(EngineError, match="its cache had a damaged build, which is removed"):
        cache.read(KEY)
    assert not file.exists()


@pytest.mark.parametrize("length", [0, 10, 500])
def test_an_engine_that_was_cut_off_is_removed(cache: BuildCache, folder: Path, length: int) -> None:
    cache.write(KEY, ENGINE)
    os.truncate(the_file(folder), length)
    with pytest.raises(EngineError, match="damaged"):
        cache.read(KEY)
    assert not list(folder.iterdir())


def test_an_engine_under_the_name_of_another_is_removed(cache: BuildCache, folder: Path) -> None:
    cache.write({**KEY, "gpu": "Stub 2"}, ENGINE)
    other = the_file(folder)
    cache.write(KEY, ENGINE)
    (file,) = set(folder.iterdir()) - {other}
    file.write_bytes(other.read_bytes())
    with pytest.raises(EngineError, match="damaged"):
        cache.read(KEY)


def test_files_and_folders_that_others_can_write_to_are_not_trusted(cache: BuildCache, folder: Path) -> None:
    cache.write(KEY, ENGINE)
    file = the_file(folder)
    why = "expected a {} of this user that nobody else can write to"
    for mode in (0o620, 0o602):
        file.chmod(mode)
        with pytest.raises(EngineError, match=why.format("file")):
            cache.read(KEY)
    file.rename(folder / "moved")
    file.symlink_to("moved")
    with pytest.raises(EngineError, match="Too many levels of symbolic links"):
        cache.read(KEY)
    folder.chmod(0o720)
    with pytest.raises(EngineError, match=why.format("folder")):
        BuildCache(str(folder), 10_000)
    link = folder.with_name("link")
    link.symlink_to(folder)
    with pytest.raises(EngineError, match=why.format("folder")):
        BuildCache(str(link), 10_000)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match=r"its cache .*/file/cache: Not a directory"):
        BuildCache(str(tmp_path / "file" / "cache"), 10_000)


def test_the_engines_that_were_not_used_for_the_longest_time_make_room(cache: BuildCache, folder: Path) -> None:
    engines = {number: {**KEY, "rows": [number]} for number in range(5)}
    for number, key in engines.items():
        cache.write(key, bytes(2_000))
        for file in folder.iterdir():
            # As if each had been written a second after the one before.
            seconds = json.loads(file.read_bytes().splitlines()[0])["key"]["rows"][0]
            os.utime(file, (seconds, seconds))
        if number == 3:
            cache.read(engines[0])
    kept = []
    for number, key in engines.items():
        with suppress(EngineError):
            cache.read(key)
            kept.append(number)
    assert kept == [0, 2, 3, 4]
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 10_000


def test_an_engine_that_is_larger_than_the_cache_is_not_kept(cache: BuildCache, folder: Path) -> None:
    cache.write(KEY, ENGINE)
    with pytest.raises(EngineError, match=r"its build has \d+ bytes, engine.build_cache_mb_max allows 10000"):
        cache.write({**KEY, "gpu": "Stub 2"}, bytes(10_000))
    assert cache.read(KEY) == ENGINE
    assert len(list(folder.iterdir())) == 1


def test_why_a_build_ended_is_noted_until_one_succeeds(cache: BuildCache, folder: Path) -> None:
    def build(error: BaseException) -> None:
        with cache.noted(KEY):
            raise error

    def why() -> str:
        with pytest.raises(EngineError) as missing:
            cache.read(KEY)
        return str(missing.value)

    with pytest.raises(EngineError):
        build(EngineError("its build failed: no memory"))
    assert why() == "its build failed: no memory"
    # As it stays where the process is killed.
    with pytest.raises(KeyboardInterrupt):
        build(KeyboardInterrupt())
    assert why() == "its build did not end in time, or ended its worker"
    # As it is where the disk is full when the engine is written.
    with pytest.raises(OSError, match="No space left"):
        build(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "engine"))
    assert why() == f"its cache {folder}: No space left on device"
    with pytest.raises(MemoryError):
        build(MemoryError())
    assert why() == "its build failed: no memory is left for it"
    with cache.noted(KEY):
        cache.write(KEY, ENGINE)
    assert cache.read(KEY) == ENGINE
    the_file(folder)


def test_builds_of_one_engine_at_once_do_not_fail_each_other(cache: BuildCache, folder: Path) -> None:
    with cache.noted(KEY):
        with cache.noted(KEY):
            cache.write(KEY, ENGINE)
        cache.write(KEY, ENGINE)
    assert cache.read(KEY) == ENGINE
    the_file(folder)


def test_what_another_worker_removes_while_it_is_looked_at_is_no_error(
    cache: BuildCache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As the folder is listed before the other worker's build ends.
    monkeypatch.setattr(os, "listdir", lambda _: ["build-gone"])
    with cache.scratch() as made:
        assert Path(made).parent == folder


def test_a_damaged_engine_that_cannot_be_removed_is_named(
    cache: BuildCache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write(KEY, ENGINE)
    os.truncate(the_file(folder), 500)

    def refuse(path: str) -> None:
        # As on a read-only disk: for root, the mode of the folder would not refuse it.
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(OSError, match="a damaged build cannot be removed: Read-only file system"):
        cache.read(KEY)


def test_what_ended_builds_left_is_removed_and_what_runs_is_not(cache: BuildCache, folder: Path) -> None:
    assert BUILD_LEFT_S == 2 * BUILD_S_MAX
    for name in ("build-old", "build-new"):
        (folder / name).mkdir()
        (folder / name / "engine.onnx").write_bytes(ENGINE)
    long_ago = time.time() - BUILD_LEFT_S - 1
    os.utime(folder / "build-old", (long_ago, long_ago))
    cache.write(KEY, ENGINE)
    assert not (folder / "build-old").exists()
    assert (folder / "build-new" / "engine.onnx").exists()


def test_no_key_is_read_from_a_header_that_is_no_header(cache: BuildCache, folder: Path) -> None:
    cache.write(KEY, ENGINE)
    file = the_file(folder)
    headers: list[Any] = [[], {}, {"key": 1}, {"key": KEY}, {"key": [["model"]], "sha256": ""}, None]
    for header in headers:
        file.write_bytes(json.dumps(header).encode() + b"\n" + ENGINE)
        with pytest.raises(EngineError, match="damaged"):
            cache.read(KEY)
