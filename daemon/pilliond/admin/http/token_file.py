"""The tokens file: reread when it changes, so that a token can be revoked without a restart."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pilliond.admin.http.tokens import Token, format_tokens, parse_tokens
from pilliond.errors import SettingsError
from pilliond.settings.secret_file import file_identity, read_secret

SETTING: Final = "admin.tokens_file"


class TokensFile:
    """The current tokens of a file. While the file is invalid every token is rejected, and the log says so."""

    def __init__(self, path: str, log: Any) -> None:
        self._path = path
        self._log = log
        self._seen = file_identity(path)
        self._tokens = read_tokens(path)

    def current(self) -> list[Token]:
        """Returns the tokens; rereads the file if it changed."""
        seen = file_identity(self._path)
        if seen != self._seen:
            self._seen = seen
            self._tokens = self._read_again()
        return self._tokens

    def _read_again(self) -> list[Token]:
        try:
            tokens = read_tokens(self._path)
        except SettingsError as error:
            # Not the old tokens: the change may have been meant to revoke one of them.
            self._log.error("tokens_unreadable", error=str(error))
            return []
        self._log.info("tokens_read", names=[token.name for token in tokens])
        return tokens


def read_tokens(path: str) -> list[Token]:
    """Reads the tokens file at `path`; raises `SettingsError`."""
    return parse_tokens(read_secret(path, SETTING), f"{SETTING}: {path}")


def tokens_to_change(path: Path) -> list[Token]:
    """Reads a tokens file of any owner, for a process that may write it; none if there is no file. Raises `SettingsError`."""
    try:
        owner = path.stat().st_uid
    except FileNotFoundError:
        return []
    return parse_tokens(read_secret(str(path), SETTING, owner), f"{SETTING}: {path}")


def change_tokens(path: Path, change: Callable[[list[Token]], list[Token]]) -> None:
    """Replaces the tokens in a file by what `change` returns for them, atomically. A missing file has none.

    Concurrent changes wait for each other. Raises `SettingsError`, and whatever `change` raises.
    """
    try:
        with _locked(path.parent):
            _replace(path, format_tokens(change(tokens_to_change(path))))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(path: Path, data: bytes) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            if path.exists():
                # If root edits the file, it still belongs to the daemon's user.
                found = path.stat()
                os.fchown(file.fileno(), found.st_uid, found.st_gid)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
