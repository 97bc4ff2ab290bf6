"""Tokens: who may ask the admin port from where no user can be seen, and for what. A TOML file of hashes.

What is stored is the SHA-256 of a secret of 256 random bits. A slow hash, as for passwords, would gain nothing: nobody can try
2^256 secrets, however fast each one goes, and every request would pay for it.
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
"""By which a secret that was published by mistake is found."""

_SECRET_BYTES: Final = 32
_HEADING: Final = (
    "# Who may ask the admin port: names, scopes and hashes. `pillion token` writes this file anew, comments and all.\n"
)


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of the file; the secret itself is nowhere."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    scope: ScopeWord
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    expires: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    """From then on it counts no more."""

    def allows(self) -> Scope:
        """The scope."""
        return Scope[self.scope.upper()]

    def has_expired(self, now: datetime) -> bool:
        """Whether it counts no more."""
        return self.expires is not None and self.expires <= now


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: Annotated[list[Token], msgspec.Meta(max_length=TOKENS_MAX)] = []

    def __post_init__(self) -> None:
        names = [token.name for token in self.tokens]
        if len(set(names)) < len(names):
            raise ValueError("expected names that differ")


def new_token(name: str, scope: ScopeWord, expires: datetime | None = None) -> tuple[Token, str]:
    """A token, and the secret that whoever holds it shows; raises `SettingsError` for a name that is none."""
    secret = _PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    token = Token(name, scope, _hash(secret), expires)
    try:
        # A constructor checks nothing; what reads the file does.
        return msgspec.convert(msgspec.to_builtins(token), Token), secret
    except msgspec.ValidationError:
        raise SettingsError(f"expected a name of at most 64 letters, digits, '.', '_' and '-', got {name!r}") from None


def find_token(tokens: Sequence[Token], secret: str) -> Token | None:
    """The token that this is the secret of, or None. Every one of them is compared, each in constant time."""
    hashed = _hash(secret)
    found = None
    for token in tokens:
        if hmac.compare_digest(token.sha256, hashed):
            found = token
    return found


def parse_tokens(data: bytes, where: str) -> list[Token]:
    """The tokens in a file's bytes; raises `SettingsError` that begins with `where`."""
    try:
        return msgspec.convert(tomllib.loads(data.decode()), _File).tokens
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise SettingsError(f"{where}: {error}") from None


def format_tokens(tokens: Sequence[Token]) -> bytes:
    """A file of these."""
    return (_HEADING + "".join(map(_entry, tokens))).encode()


def _entry(token: Token) -> str:
    lines = ["", "[[tokens]]", f'name = "{token.name}"', f'scope = "{token.scope}"', f'sha256 = "{token.sha256}"']
    if token.expires is not None:
        lines.append(f"expires = {token.expires.astimezone(UTC).isoformat(timespec='seconds')}")
    return "\n".join(lines) + "\n"


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
