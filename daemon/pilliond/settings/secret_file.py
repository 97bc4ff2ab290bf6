"""Files that hold secrets: read only if nobody but their owner can read them."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pilliond.errors import SettingsError
from pilliond.limits import SECRET_BYTES_MAX

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_CREDENTIALS_DIRECTORY: Final = "CREDENTIALS_DIRECTORY"


def credential(name: str, environment: Mapping[str, str]) -> str:
    """Returns the path of systemd's credential `NAME` (`LoadCredential=NAME:…`), or an empty string."""
    folder = environment.get(_CREDENTIALS_DIRECTORY, "")
    path = os.path.join(folder, name)
    return path if folder and os.path.exists(path) else ""


def read_secret(path: str, setting: str, owner: int = 0) -> bytes:
    """Reads the file that a setting names. It must belong to this user, root, or the user with the id `owner`.

    Raises `SettingsError` if it cannot be read, or if others can read it.
    """
    try:
        # O_NONBLOCK: opening a pipe would block.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            # Check the opened file, not the path, which may name another file by now.
            _check_is_private(path, setting, os.fstat(descriptor), owner)
            data = file.read(SECRET_BYTES_MAX + 1)
    except OSError as error:
        raise SettingsError(f"{setting}: {path}: {error.strerror}") from None
    if len(data) > SECRET_BYTES_MAX:
        raise SettingsError(f"{setting}: {path}: expected at most {SECRET_BYTES_MAX} bytes")
    return data


def file_identity(path: str) -> tuple[int, ...]:
    """Returns values that differ after the file was changed."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _check_is_private(path: str, setting: str, found: os.stat_result, owner: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise SettingsError(f"{setting}: {path}: expected a file")
    if found.st_uid not in (os.getuid(), 0, owner):
        raise SettingsError(f"{setting}: {path}: expected a file of this user or of root, it is of user {found.st_uid}")
    mode = stat.S_IMODE(found.st_mode)
    allowed = _OTHERS
    if str(Path(path).parent) == os.environ.get(_CREDENTIALS_DIRECTORY):
        # systemd grants the unit's user access by an ACL, whose mask appears in the group bits.
        allowed &= ~stat.S_IRGRP
    if mode & allowed:
        raise SettingsError(f"{setting}: {path}: expected mode 0600, got {mode:04o}: others can read it (chmod 600)")
