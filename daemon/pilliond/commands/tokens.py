"""`pillion token`: makes, lists and takes back the tokens of a daemon's admin port."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import click

from pilliond.admin.http.token_file import change_tokens, tokens_to_change
from pilliond.admin.http.tokens import ScopeWord, Token, new_token
from pilliond.errors import SettingsError


class TokenCommand(click.Command):
    """Turns what is wrong with a file of tokens into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SettingsError as error:
            failure = click.ClickException(str(error))
            failure.exit_code = os.EX_CONFIG  # type: ignore[misc]  # click declares it on the class
            raise failure from None


file_option = click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="PILLION_ADMIN__TOKENS_FILE",
    required=True,
    help="The daemon's admin.tokens_file. A daemon that runs sees the change.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("token")
def token() -> None:
    """Who may ask a daemon's admin port, and for what."""


@token.command("new", cls=TokenCommand)
@click.argument("name")
@click.option("--scope", type=click.Choice(get_args(ScopeWord)), required=True, help="What it is good for.")
@click.option(
    "--days", type=click.IntRange(1, 36_500), help="It counts no more after so many; without: until it is taken back."
)
@file_option
@json_option
def new(name: str, scope: ScopeWord, days: int | None, file: Path, as_json: bool) -> None:
    """Makes a token and prints its secret, once: what is kept is its hash."""
    expires = None if days is None else datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
    made, secret = new_token(name, scope, expires)

    def with_it(tokens: list[Token]) -> list[Token]:
        if any(other.name == name for other in tokens):
            raise SettingsError(f"{file}: there is a token {name} already: take it back first (pillion token revoke)")
        return [*tokens, made]

    change_tokens(file, with_it)
    if as_json:
        click.echo(json.dumps({**_told(made), "token": secret, "file": str(file)}, indent=2))
    else:
        click.echo(secret)


@token.command("list", cls=TokenCommand)
@file_option
@json_option
def list_tokens(file: Path, as_json: bool) -> None:
    """The tokens of a file; no secrets, they are not in it."""
    if not file.exists():
        raise SettingsError(f"{file}: there is no such file")
    told = [_told(entry) for entry in tokens_to_change(file)]
    if as_json:
        click.echo(json.dumps({"tokens": told}, indent=2))
    else:
        _print_table(told)


@token.command("revoke", cls=TokenCommand)
@click.argument("name")
@file_option
@json_option
def revoke(name: str, file: Path, as_json: bool) -> None:
    """Takes a token back, at once."""

    def without_it(tokens: list[Token]) -> list[Token]:
        left = [other for other in tokens if other.name != name]
        if len(left) == len(tokens):
            raise SettingsError(f"{file}: there is no token {name}")
        return left

    change_tokens(file, without_it)
    click.echo(json.dumps({"revoked": name, "file": str(file)}, indent=2) if as_json else f"{name} is taken back")


def _told(entry: Token) -> dict[str, Any]:
    expires = None if entry.expires is None else entry.expires.isoformat()
    return {
        "name": entry.name,
        "scope": entry.scope,
        "expires": expires,
        "has_expired": entry.has_expired(datetime.now(UTC)),
    }


def _print_table(told: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("NAME", "SCOPE", "EXPIRES", box=None, pad_edge=False, header_style="bold")
    for entry in told:
        expires = entry["expires"] or "never"
        table.add_row(entry["name"], entry["scope"], f"{expires} (over)" if entry["has_expired"] else expires)
    Console(highlight=False).print(table)
