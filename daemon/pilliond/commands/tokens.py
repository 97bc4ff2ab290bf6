"""`pillion token`: create, list and revoke the tokens of a daemon's admin port."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import click

from pillion.cli_support import (
    Failure,
    PillionGroup,
    examples,
    json_option,
    missing_package,
    new_table,
    print_json,
    print_table,
)
from pilliond.admin.http.token_file import change_tokens, tokens_to_change
from pilliond.admin.http.tokens import ScopeWord, Token, new_token
from pilliond.errors import SettingsError

file_option = click.option(
    "--file",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="PILLION_ADMIN__TOKENS_FILE",
    required=True,
    help="Tokens file, the setting admin.tokens_file. A running daemon rereads it. "
    "Environment: PILLION_ADMIN__TOKENS_FILE.",
)


def explain(error: Exception) -> Failure | None:
    """Returns the failure that `error` means; None if it is a bug."""
    if isinstance(error, SettingsError):
        return Failure(str(error), error.exit_code)
    return missing_package(error, {}, "daemon")


@click.group(
    "token",
    cls=PillionGroup,
    explain=explain,
    epilog=examples(
        "pillion token new grafana --scope view --file /etc/pillion/tokens.toml",
        "pillion token revoke grafana --file /etc/pillion/tokens.toml",
    ),
)
def token() -> None:
    """Create, list and revoke tokens.

    A token gives access to the admin port over TCP. The tokens file holds hashes, no secrets.
    """


@token.command("new")
@click.argument("name", metavar="NAME")
@click.option("--scope", type=click.Choice(get_args(ScopeWord)), required=True, help="What the token allows.")
@click.option("--days", metavar="DAYS", type=click.IntRange(1, 36_500), help="Days until it expires; default: never.")
@file_option
@json_option
def new(name: str, scope: ScopeWord, days: int | None, file: Path, as_json: bool) -> None:
    """Create a token and print its secret.

    The secret is printed only once: the file keeps its hash.
    """
    expires = None if days is None else datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
    made, secret = new_token(name, scope, expires)

    def with_it(tokens: list[Token]) -> list[Token]:
        if any(other.name == name for other in tokens):
            raise SettingsError(f"{file}: token {name} exists: revoke it first (pillion token revoke)")
        return [*tokens, made]

    change_tokens(file, with_it)
    if as_json:
        print_json({**_fields(made), "token": secret, "file": str(file)})
    else:
        click.echo(secret)


@token.command("list")
@file_option
@json_option
def list_tokens(file: Path, as_json: bool) -> None:
    """List the tokens in a file.

    The list shows names, scopes and expiry times, but no secrets.
    """
    if not file.exists():
        raise SettingsError(f"{file}: there is no such file")
    entries = [_fields(entry) for entry in tokens_to_change(file)]
    if as_json:
        print_json({"tokens": entries})
    else:
        _print_tokens(entries)


@token.command("revoke")
@click.argument("name", metavar="NAME")
@file_option
@json_option
def revoke(name: str, file: Path, as_json: bool) -> None:
    """Revoke a token.

    A running daemon refuses it from its next request on.
    """

    def without_it(tokens: list[Token]) -> list[Token]:
        left = [other for other in tokens if other.name != name]
        if len(left) == len(tokens):
            raise SettingsError(f"{file}: there is no token {name}")
        return left

    change_tokens(file, without_it)
    if as_json:
        print_json({"revoked": name, "file": str(file)})
    else:
        click.echo(f"{name} is revoked")


def _fields(entry: Token) -> dict[str, Any]:
    expires = None if entry.expires is None else entry.expires.isoformat()
    return {
        "name": entry.name,
        "scope": entry.scope,
        "expires": expires,
        "has_expired": entry.has_expired(datetime.now(UTC)),
    }


def _print_tokens(entries: list[dict[str, Any]]) -> None:
    rows = new_table("NAME", "SCOPE", "EXPIRES")
    for entry in entries:
        expires = entry["expires"] or "never"
        rows.add_row(entry["name"], entry["scope"], f"{expires} (expired)" if entry["has_expired"] else expires)
    print_table(rows)
