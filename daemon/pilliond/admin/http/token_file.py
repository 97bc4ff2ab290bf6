"""The file of tokens: read anew when it changes, so that a token can be taken back without a restart."""

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
    """The tokens in a file, as they are now. Where the file is not right any more, there are none: that is said in the log."""

    def __init__(self, path: str, log: Any) -> None:
        self._path = path
        self._log = log
        self._seen = file_identity(path)
        self._tokens = read_tokens(path)

    def now(self) -> list[Token]:
        """The tokens."""
        seen = file_identity(self._path)
        if seen != self._seen:
            self._seen = seen
            self._tokens = self._read_again()
        return self._tokens

    def _read_again(self) -> list[Token]:
        try:
            tokens = read_tokens(self._path)
        except SettingsError as error:
            # Not those of before: one of them may be what somebody wanted to take back.
            self._log.error("tokens_unreadable", error=str(error))
            return []
        self._log.info("tokens_read", names=[token.name for token in tokens])
        return tokens


def read_tokens(path: str) -> list[Token]:
    """The tokens in the file at `path`; raises `SettingsError`."""
    return parse_tokens(read_secret(path, SETTING), f"{SETTING}: {path}")


def tokens_to_change(path: Path) -> list[Token]:
    """The tokens in a file of whatever user, for who may write it; none where there is no file. Raises `SettingsError`."""
    try:
        owner = path.stat().st_uid
    except FileNotFoundError:
        return []
    return parse_tokens(read_secret(str(path), SETTING, owner), f"{SETTING}: {path}")


def change_tokens(path: Path, change: Callable[[list[Token]], list[Token]]) -> None:
    """Writes what `change` makes of the tokens there, as a whole or not at all; a file that is not there has none.

    Others who do the same wait. Raises `SettingsError`, also what `change` raises.
    """
    try:
        with _alone_in(path.parent):
            _replace(path, format_tokens(change(tokens_to_change(path))))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
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
                # Root may write what is its daemon's.
                found = path.stat()
                os.fchown(file.fileno(), found.st_uid, found.st_gid)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
