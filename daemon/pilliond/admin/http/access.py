"""Access to the admin port: who asks, and what they may. Decides without awaiting; `guard` asks it for each request.

Rule 1: at a Unix socket a peer is its user. This daemon's own, root and the members of `admin.group` may do everything.
Rule 2: at TCP a peer is its token, where there is a tokens file; without one anybody on this host may look, and nobody do more.
Rule 3: what is `OPEN` is told to whoever asks.
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


class Asker(msgspec.Struct, frozen=True):
    """Somebody who may."""

    name: str
    kind: str
    """`user`, `token`, or empty for anybody."""

    def signs(self, said: str) -> str:
        """Who is written into the audit log, where the request says that it is of `said`: `alice (token ci)`."""
        own = f"token {self.name}" if self.kind == "token" else self.name
        if said in ("", self.name, own):
            return own
        return f"{said} ({self.kind} {self.name})"


class Refused(Exception):  # noqa: N818  # not an error of ours: an answer
    """A request that is not let in: why, as a metric and as a problem."""

    def __init__(self, reason: str, problem: ProblemError) -> None:
        super().__init__(str(problem))
        self.reason = reason
        self.problem = problem


class Access:
    """Who may do what. `tokens` is None where there is no tokens file; `group` an id whose members are let in."""

    def __init__(self, tokens: TokensFile | None, group: int | None, refusals: Refusals) -> None:
        self.refusals = refusals
        self._tokens = tokens
        self._group = group

    @classmethod
    def of(cls, settings: AdminSettings, log: Any) -> Self:
        """As the settings say; raises `SettingsError` where their tokens file is not right."""
        tokens = TokensFile(settings.tokens_file, log) if settings.tokens_file else None
        return cls(tokens, settings.group_id(), Refusals(log))

    def of_user(self, connection: Connection) -> Asker:
        """Who is at the other end of a Unix socket; raises `Refused`."""
        name = _user_name(user_id(connection))
        if not is_allowed(connection, self._group):
            whom = "this daemon's user and root" + ("" if self._group is None else ", and members of admin.group")
            raise _forbidden("user", f"expected {whom}, got user {name}")
        return Asker(name, "user")

    def of_token(self, headers: Mapping[str, str], scope: Scope) -> Asker:
        """Who asks over TCP for something of that scope; raises `Refused`."""
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
                f"without a token expected the scope view, this needs {scope.word}: "
                "ask at the Unix socket, or give the daemon an admin.tokens_file",
            )
        return Asker("anybody", "")

    def _holder(self, secret: str, scope: Scope) -> Asker:
        token = find_token(self._tokens.now() if self._tokens is not None else (), secret)
        if token is None:
            raise _unauthorized("wrong_token", "expected a token of this daemon, got another", "invalid_token")
        if token.has_expired(datetime.now(UTC)):
            raise _unauthorized("expired_token", f"the token {token.name} has expired", "invalid_token")
        _check_scope(token, scope)
        return Asker(token.name, "token")


def _check_scope(token: Token, scope: Scope) -> None:
    if token.allows() < scope:
        challenge = {"WWW-Authenticate": f'{_BEARER}, error="insufficient_scope", scope="{scope.word}"'}
        detail = f"expected the scope {scope.word}, the token {token.name} has {token.scope}"
        raise Refused("scope", ProblemError(HTTPStatus.FORBIDDEN, "forbidden", detail, challenge))


def _check_origin(headers: Mapping[str, str]) -> None:
    """A page that a browser has from elsewhere may not use it to ask here: what asks so says whence."""
    origin = headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("Host", ""):
        raise _forbidden("origin", "expected a request of this port's own pages, got one of another origin")


def _check_host(headers: Mapping[str, str]) -> None:
    """A name that somebody else made point here is not this host's: its pages would be of the same origin."""
    try:
        host = urlsplit(f"//{headers.get('Host', '')}").hostname or ""
        is_own = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_own = False
    if not is_own:
        raise _forbidden("host", "expected a loopback address or localhost in Host, as there is no token")


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
