"""What the operator's commands share: the daemon's address, credentials, and what a failure means."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable

import click

from pillion.cli_support import Failure, PillionCommand, missing_package
from pillion_protocol.default_addresses import own_admin_address
from pilliond.commands.admin_client import AdminClient, AdminError, credentials_of


def explain(error: Exception) -> Failure | None:
    """Returns the failure that `error` means; None if it is a bug."""
    if isinstance(error, AdminError):
        return Failure(str(error), error.exit_code)
    return missing_package(error, {}, "daemon")


def command(name: str, epilog: str = "") -> Callable[[Callable[..., None]], click.Command]:
    """Makes a function a command that ends with one line and an exit code if the admin port refuses."""
    return click.command(name, cls=PillionCommand, explain=explain, epilog=epilog or None)


def _first(_context: click.Context, _parameter: click.Parameter, addresses: str) -> str:
    """Returns the first of the addresses, which the daemon's variable separates by commas."""
    address = addresses.partition(",")[0]
    return own_admin_address() if address == "unix://" else address


def _keep(context: click.Context, parameter: click.Parameter, value: str) -> None:
    """Keeps an option for `client_of`. One given before a subcommand counts, unless the subcommand repeats it."""
    key = f"pilliond.{parameter.name}"
    context.meta[key] = value or context.meta.get(key, "")


def admin_option(function: Callable[..., None]) -> Callable[..., None]:
    """Adds `--admin`, `--token-file` and `--ca-file`, which `client_of` turns into a client."""
    for option in (
        click.option(
            "--ca-file", metavar="FILE", default="", expose_value=False, callback=_keep,
            help="CA certificates for an https:// address, PEM. Environment: PILLION_CA_FILE.",
        ),
        click.option(
            "--token-file", metavar="FILE", default="", expose_value=False, callback=_keep,
            help="File with a token, for TCP. Environment: PILLION_TOKEN_FILE, or the token itself in PILLION_TOKEN.",
        ),
        click.option(
            "--admin", metavar="URL", envvar="PILLION_ADMIN__LISTEN", default=own_admin_address, callback=_first,
            show_default="admin.sock of this user's daemon",
            help="Admin port of the daemon: unix:///PATH, http://HOST:PORT or https://HOST:PORT.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


def client_of(admin: str) -> AdminClient:
    """Returns the client of a command that has the `admin_option`; raises `AdminError`."""
    meta = click.get_current_context().meta
    credentials = credentials_of(os.environ, meta["pilliond.token_file"], meta["pilliond.ca_file"])
    return AdminClient(admin, credentials)


wait_option = click.option("--wait", is_flag=True, help="Wait for the end, and fail if the operation fails.")
reason_option = click.option("--reason", metavar="TEXT", default="", help="Reason for the audit log.")
required_reason_option = click.option("--reason", metavar="TEXT", required=True, help="Reason for the audit log.")

policy_argument = click.argument("policy", metavar="POLICY")
optional_policy_argument = click.argument("policy", metavar="[POLICY]", default="")
policy_option = click.option("--policy", metavar="POLICY", default="", help="Policy, if the daemon serves several.")
version_argument = click.argument("version", metavar="VERSION")
optional_version_argument = click.argument("version", metavar="[VERSION]", default="")


def user_name() -> str:
    """Returns the name of this user, for the audit log."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
