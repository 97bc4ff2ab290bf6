"""Access to the admin port. Decides without awaiting; `guard` calls it for each request.

Rule 1: at a Unix socket the peer's user counts. The daemon's own user, root and members of `admin.group` may do everything.
Rule 2: over TCP the token counts. Without a tokens file, any process on this host may read, and none may do more.
Rule 3: an `OPEN` endpoint answers every caller.
"""

from __future__ import annotations

import ipaddress
import pwd
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final, Self
from urllib.parse import urlsplit

import msgspec

from pilliond.admin.http.problems import ProblemError
from pilliond.admin.http.refusals import Refusals
from pilliond.admin.http.scope import Scope
from pilliond.admin.http.token_file import TokensFile
from pilliond.admin.http.tokens import Token, find_token
from pilliond.linux.peer_credentials import Connection, is_allowed, user_id
from pilliond.settings.schema import AdminSettings

_BEARER: Final = 'Bearer realm="pillion"'


class Caller(msgspec.Struct, frozen=True):
    """A caller with access."""

    name: str
    kind: str
    """`user`, `token`, or empty for a caller without a token."""

    def author(self, claimed: str) -> str:
        """Returns the author for the audit log of a request that claims to be by `claimed`: `alice (token ci)`."""
        own = f"token {self.name}" if self.kind == "token" else self.name
        if claimed in ("", self.name, own):
            return own
        return f"{claimed} ({self.kind} {self.name})"


class Refused(Exception):  # noqa: N818  # not an error of ours: an answer
    """A request without access: its reason for the metric, and its problem."""

    def __init__(self, reason: str, problem: ProblemError) -> None:
        super().__init__(str(problem))
        self.reason = reason
        self.problem = problem


class Access:
    """Decides about requests. `tokens` is None without a tokens file; `group` is the id of `admin.group`."""

    def __init__(self, tokens: TokensFile | None, group: int | None, refusals: Refusals) -> None:
        self.refusals = refusals
        self._tokens = tokens
        self._group = group

    @classmethod
    def of(cls, settings: AdminSettings, log: Any) -> Self:
        """Returns the access that the settings describe; raises `SettingsError` if their tokens file is invalid."""
        tokens = TokensFile(settings.tokens_file, log) if settings.tokens_file else None
        return cls(tokens, settings.group_id(), Refusals(log))

    def of_user(self, connection: Connection) -> Caller:
        """Returns the caller at the other end of a Unix socket; raises `Refused`."""
        name = _user_name(user_id(connection))
        if not is_allowed(connection, self._group):
            allowed = "this daemon's user and root" + ("" if self._group is None else ", and members of admin.group")
            raise _forbidden("user", f"expected {allowed}, got user {name}")
        return Caller(name, "user")

    def of_token(self, headers: Mapping[str, str], scope: Scope) -> Caller:
        """Returns the caller of a request over TCP that needs `scope`; raises `Refused`."""
        _check_origin(headers)
        kind, _, secret = headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self._holder(secret.strip(), scope)
        if self._tokens is not None:
            raise _unauthorized("no_token", "expected Authorization: Bearer TOKEN")
        _check_host(headers)
        if scope > Scope.VIEW:
            raise _unauthorized(
                "no_token",
                f"expected a token with the scope {scope.word}, got none: "
                "use the Unix socket, or give the daemon an admin.tokens_file",
            )
        return Caller("anybody", "")

    def _holder(self, secret: str, scope: Scope) -> Caller:
        token = find_token(self._tokens.current() if self._tokens is not None else (), secret)
        if token is None:
            raise _unauthorized("wrong_token", "expected a token of this daemon, got another", "invalid_token")
        if token.has_expired(datetime.now(UTC)):
            raise _unauthorized("expired_token", f"the token {token.name} has expired", "invalid_token")
        _check_scope(token, scope)
        return Caller(token.name, "token")


def _check_scope(token: Token, scope: Scope) -> None:
    if token.allows() < scope:
        challenge = {"WWW-Authenticate": f'{_BEARER}, error="insufficient_scope", scope="{scope.word}"'}
        detail = f"expected the scope {scope.word}, the token {token.name} has {token.scope}"
        raise Refused("scope", ProblemError(HTTPStatus.FORBIDDEN, "forbidden", detail, challenge))


def _check_origin(headers: Mapping[str, str]) -> None:
    """Refuses requests that a browser makes for a page of another origin; browsers name the origin."""
    origin = headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("Host", ""):
        raise _forbidden("origin", "expected a request of this port's own pages, got one of another origin")


def _check_host(headers: Mapping[str, str]) -> None:
    """Refuses foreign host names: a page of a name that was rebound to this host would have the same origin."""
    try:
        host = urlsplit(f"//{headers.get('Host', '')}").hostname or ""
        is_own = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_own = False
    if not is_own:
        raise _forbidden("host", "expected a loopback address or localhost in Host without a token")


def _unauthorized(reason: str, detail: str, error: str = "") -> Refused:
    challenge = f'{_BEARER}, error="{error}"' if error else _BEARER
    problem = ProblemError(HTTPStatus.UNAUTHORIZED, "unauthorized", detail, {"WWW-Authenticate": challenge})
    return Refused(reason, problem)


def _forbidden(reason: str, detail: str) -> Refused:
    return Refused(reason, ProblemError(HTTPStatus.FORBIDDEN, "forbidden", detail))


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
