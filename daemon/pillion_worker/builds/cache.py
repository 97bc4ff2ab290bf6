"""A folder of what was built of models for this host: TensorRT engines and compiled programs, which are engines here, too.

An engine is loaded as a program is: only what this user wrote is trusted. One file for each: a line of JSON with its key and its digest, then its bytes. They are compared before anything is
loaded, and what was compared is what is loaded. A file that is not as it should be is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from pillion_worker.errors import EngineError, one_line
from pillion_worker.limits import BUILD_LEFT_S, ENGINE_HEADER_BYTES_MAX
from pillion_worker.tensors import LoadRequest

_ENGINE: Final = ".engine"
_FAILURE: Final = ".failed"
_SCRATCH: Final = "build-"

Key = Mapping[str, Any]
"""All that an engine depends on, by name."""


def read_or_build(request: LoadRequest, key: Key, build: Callable[[str], bytes]) -> bytes:
    """Returns the engine of this key from the cache that a request names.

    If there is none and the request says so, `build` makes it; it gets an empty folder. Raises `EngineError` if there is
    none, it cannot be trusted, or it cannot be built.
    """
    if not request.build_cache:
        raise EngineError("engine.build_cache_dir is not set, and this user has no home")
    try:
        cache = BuildCache(request.build_cache, request.build_cache_bytes_max)
        try:
            return cache.read(key)
        except EngineError:
            if not request.builds:
                raise
        with cache.noted(key):
            try:
                with cache.scratch() as folder:
                    engine = build(folder)
            except EngineError as error:
                raise EngineError(f"its build failed: {error}") from None
            cache.write(key, engine)
        return engine
    except OSError as error:
        raise EngineError(f"its cache {request.build_cache}: {error.strerror}") from None


class BuildCache:
    """The folder `path`, whose engines have `bytes_max` together. Raises `EngineError` if others can write to it."""

    def __init__(self, path: str, bytes_max: int) -> None:
        self._path = path
        self._bytes_max = bytes_max
        try:
            os.makedirs(path, mode=0o700, exist_ok=True)
            self._check(os.lstat(path), stat.S_ISDIR, "folder")
        except OSError as error:
            raise EngineError(f"its cache {path}: {error.strerror}") from None

    def read(self, key: Key) -> bytes:
        """Returns an engine. Raises `EngineError`, which says why there is none that may be loaded, or `OSError`."""
        path = self._file(key, _ENGINE)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise EngineError(self._why_missing(key)) from None
        except OSError as error:
            raise EngineError(f"its cache {path}: {error.strerror}") from None
        with open(descriptor, "rb") as file:
            self._check(os.fstat(descriptor), stat.S_ISREG, "file")
            engine = _checked(file.readline(ENGINE_HEADER_BYTES_MAX), file.read(self._bytes_max + 1), key)
        if engine is None:
            self._remove_damaged(path)
            raise EngineError("its cache had a damaged build, which is removed")
        # The oldest are removed first: it is in use. A cache that is read-only serves, too.
        with suppress(OSError):
            os.utime(path)
        return engine

    def write(self, key: Key, engine: bytes) -> None:
        """Keeps an engine, and removes the oldest ones where there is no room. Raises `EngineError` or `OSError`."""
        header = json.dumps({"key": dict(key), "sha256": _digest(engine)}).encode() + b"\n"
        size = len(header) + len(engine)
        if size > self._bytes_max or len(header) > ENGINE_HEADER_BYTES_MAX:
            raise EngineError(f"its build has {size} bytes, engine.build_cache_mb_max allows {self._bytes_max}")
        with self.scratch() as folder:
            written = os.path.join(folder, "engine")
            with open(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(header)
                file.write(engine)
                file.flush()
                os.fsync(file.fileno())
            self._make_room(size)
            os.replace(written, self._file(key, _ENGINE))

    @contextmanager
    def noted(self, key: Key) -> Iterator[None]:
        """Notes that an engine is being built. What ends the build stays noted, also if it ends the process.

        Raises `OSError`.
        """
        path = self._file(key, _FAILURE)
        self._note(path, "its build did not end in time, or ended its worker")
        try:
            yield
        except Exception as error:
            # A disk that is full may not take the note either: the error itself is told in any case.
            with suppress(OSError):
                self._note(path, self._why_ended(error))
            raise
        # Another worker that built the same engine may have removed it.
        with suppress(FileNotFoundError):
            os.unlink(path)

    @contextmanager
    def scratch(self) -> Iterator[str]:
        """A folder for what is not complete yet; it is removed. Those that ended builds have left are, too."""
        for name in os.listdir(self._path):
            path = os.path.join(self._path, name)
            # Another worker may remove it meanwhile.
            with suppress(FileNotFoundError):
                if name.startswith(_SCRATCH) and time.time() - os.lstat(path).st_mtime > BUILD_LEFT_S:
                    shutil.rmtree(path, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=self._path) as folder:
            yield folder

    def _remove_damaged(self, path: str) -> None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            # Another worker found the damage, too.
            return
        except OSError as error:
            raise OSError(error.errno, f"a damaged build cannot be removed: {error.strerror}", path) from None

    def _make_room(self, size: int) -> None:
        engines = []
        for entry in os.scandir(self._path):
            # Another worker may remove it meanwhile.
            with suppress(FileNotFoundError):
                if entry.name.endswith(_ENGINE):
                    found = entry.stat(follow_symlinks=False)
                    engines.append((found.st_mtime_ns, found.st_size, entry.path))
        total = size + sum(each for _, each, _ in engines)
        for _, each, path in sorted(engines):
            if total <= self._bytes_max:
                return
            with suppress(FileNotFoundError):
                os.unlink(path)
            total -= each

    def _why_missing(self, key: Key) -> str:
        with suppress(OSError, ValueError, KeyError, TypeError), open(self._file(key, _FAILURE), "rb") as file:
            return str(json.loads(file.read(ENGINE_HEADER_BYTES_MAX))["why"])
        return "none was built for this model, device and software: one is built while a version is staged"

    def _why_ended(self, error: Exception) -> str:
        if isinstance(error, EngineError):
            return str(error)
        if isinstance(error, MemoryError):
            return "its build failed: no memory is left for it"
        if isinstance(error, OSError):
            return f"its cache {self._path}: {error.strerror or one_line(error)}"
        return f"its build failed: {type(error).__name__}: {one_line(error)}"

    def _note(self, path: str, why: str) -> None:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
            json.dump({"why": why}, file)

    def _file(self, key: Key, suffix: str) -> str:
        return os.path.join(self._path, _digest(_canonical(key)) + suffix)

    def _check(self, found: os.stat_result, is_kind: Any, kind: str) -> None:
        if not is_kind(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise EngineError(f"its cache {self._path}: expected a {kind} of this user that nobody else can write to")


def _checked(header: bytes, engine: bytes, key: Key) -> bytes | None:
    try:
        said = json.loads(header)
        is_it = _canonical(said["key"]) == _canonical(key) and said["sha256"] == _digest(engine)
    except (ValueError, KeyError, TypeError):
        return None
    return engine if is_it else None


def _canonical(key: Any) -> bytes:
    return json.dumps(dict(key), sort_keys=True).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
