"""Daemon locks: a running daemon locks a file for each version that it serves. The kernel unlocks it when the daemon dies."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

LOCKS_NAME: Final = "leases"


class DaemonLock:
    """Protects a version from `gc` until it is closed. Owns its file, which `close` removes."""

    def __init__(self, root: Path, digest: str) -> None:
        folder = root / LOCKS_NAME
        folder.mkdir(exist_ok=True)
        self._descriptor, name = tempfile.mkstemp(dir=folder, prefix=f"{digest.removeprefix('sha256:')}.")
        self._path = Path(name)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def close(self) -> None:
        """Releases the version."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def locked_digests(root: Path) -> set[str]:
    """The digests that running daemons lock. The caller holds the store's lock, under which daemon locks are made."""
    return {f"sha256:{path.name.partition('.')[0]}" for path in _lock_files(root) if is_held(path)}


def stale_locks(root: Path) -> list[Path]:
    """The lock files of ended processes. The caller holds the store's lock."""
    return [path for path in _lock_files(root) if not is_held(path)]


def is_held(path: Path) -> bool:
    """Whether the process that made a lock file still runs."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _lock_files(root: Path) -> list[Path]:
    folder = root / LOCKS_NAME
    return sorted(folder.iterdir()) if folder.is_dir() else []
