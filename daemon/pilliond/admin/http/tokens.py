"""Tokens: access to the admin port over TCP, where the kernel does not tell the peer's user. A TOML file of hashes.

The file keeps the SHA-256 of a secret of 256 random bits. A slow hash, as for passwords, would gain nothing: nobody can
try 2^256 secrets, and every request would pay for it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

import msgspec

from pilliond.admin.http.scope import Scope
from pilliond.errors import SettingsError
from pilliond.limits import TOKENS_MAX

ScopeWord = Literal["view", "operate", "admin"]

_PREFIX: Final = "pillion_"
"""So that scanners find a secret that was published by mistake."""

_SECRET_BYTES: Final = 32
_HEADING: Final = (
    "# Tokens of the admin port: names, scopes and hashes. `pillion token` rewrites this file and drops comments.\n"
)


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of the file. The secret itself is stored nowhere."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    scope: ScopeWord
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    expires: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    """The token is invalid from then on; None: it never expires."""

    def allows(self) -> Scope:
        """Returns the scope."""
        return Scope[self.scope.upper()]

    def has_expired(self, now: datetime) -> bool:
        """Returns whether it is invalid at `now`."""
        return self.expires is not None and self.expires <= now


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: Annotated[list[Token], msgspec.Meta(max_length=TOKENS_MAX)] = []

    def __post_init__(self) -> None:
        names = [token.name for token in self.tokens]
        if len(set(names)) < len(names):
            raise ValueError("expected names that differ")


def new_token(name: str, scope: ScopeWord, expires: datetime | None = None) -> tuple[Token, str]:
    """Returns a new token and its secret; raises `SettingsError` for an invalid name."""
    secret = _PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    token = Token(name, scope, _hash(secret), expires)
    try:
        # msgspec checks no constraints in a constructor, only when it converts.
        return msgspec.convert(msgspec.to_builtins(token), Token), secret
    except msgspec.ValidationError:
        raise SettingsError(f"expected a name of at most 64 letters, digits, '.', '_' and '-', got {name!r}") from None


def find_token(tokens: Sequence[Token], secret: str) -> Token | None:
    """Returns the token of this secret, or None. It compares all tokens, each in constant time."""
    hashed = _hash(secret)
    found = None
    for token in tokens:
        if hmac.compare_digest(token.sha256, hashed):
            found = token
    return found


def parse_tokens(data: bytes, where: str) -> list[Token]:
    """Parses the bytes of a tokens file; raises `SettingsError` with a message that begins with `where`."""
    try:
        return msgspec.convert(tomllib.loads(data.decode()), _File).tokens
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise SettingsError(f"{where}: {error}") from None


def format_tokens(tokens: Sequence[Token]) -> bytes:
    """Returns the bytes of a tokens file."""
    return (_HEADING + "".join(map(_entry, tokens))).encode()


def _entry(token: Token) -> str:
    lines = ["", "[[tokens]]", f'name = "{token.name}"', f'scope = "{token.scope}"', f'sha256 = "{token.sha256}"']
    if token.expires is not None:
        lines.append(f"expires = {token.expires.astimezone(UTC).isoformat(timespec='seconds')}")
    return "\n".join(lines) + "\n"


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
