"""What the operator's commands have in common: where the daemon is, what is shown to it, and how a failure ends."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from typing import Any

import click

from pillion_protocol.default_addresses import own_admin_address
from pilliond.commands.admin_client import AdminClient, AdminError, credentials_of


class Failure(click.ClickException):
    """What the `pillion` command prints as one line, and the code that it exits with."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it on the class and reads it from the instance


class OperatorCommand(click.Command):
    """Turns what the admin port cannot do into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AdminError as error:
            raise Failure(str(error), error.exit_code) from None


def _first(_context: click.Context, _parameter: click.Parameter, addresses: str) -> str:
    """Of several, as the daemon takes them, the first."""
    address = addresses.partition(",")[0]
    return own_admin_address() if address == "unix://" else address


def _keep(context: click.Context, parameter: click.Parameter, value: str) -> None:
    # What was said before a subcommand counts, unless that says otherwise.
    key = f"pilliond.{parameter.name}"
    context.meta[key] = value or context.meta.get(key, "")


def admin_option(function: Callable[..., None]) -> Callable[..., None]:
    """Where the daemon is, and what is shown to it: `client_of` takes what comes of this."""
    for option in (
        click.option(
            "--ca-file", metavar="FILE", default="", expose_value=False, callback=_keep,
            help="Who may vouch for an https:// address, PEM. Or PILLION_CA_FILE.",
        ),
        click.option(
            "--token-file", metavar="FILE", default="", expose_value=False, callback=_keep,
            help="Holds a token, for TCP. Or PILLION_TOKEN_FILE, or the token itself in PILLION_TOKEN.",
        ),
        click.option(
            "--admin", metavar="URL", envvar="PILLION_ADMIN__LISTEN", default=own_admin_address, callback=_first,
            show_default="admin.sock of this user's daemon",
            help="The daemon's admin port: unix:///PATH, http://HOST:PORT or https://HOST:PORT.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


def client_of(admin: str) -> AdminClient:
    """The client of a command that has the `admin_option`."""
    meta = click.get_current_context().meta
    credentials = credentials_of(os.environ, meta["pilliond.token_file"], meta["pilliond.ca_file"])
    return AdminClient(admin, credentials)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
wait_option = click.option("--wait", is_flag=True, help="Return when it is done, and fail where it fails.")
reason_option = click.option("--reason", metavar="TEXT", default="", help="Why; the audit log keeps it.")
why_option = click.option("--reason", metavar="TEXT", required=True, help="Why; the audit log keeps it.")


def command(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command of this module."""
    return click.command(name, cls=OperatorCommand)


def who() -> str:
    """The name of this user, for the audit log."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
