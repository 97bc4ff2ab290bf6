"""The operator's commands: `pillion status`, `versions`, `stage`, `canary`, `shadow`, `switch`, `rollback`, `drain`. They ask the admin port."""

from __future__ import annotations

import getpass
import json
import os
import time
from collections.abc import Callable
from typing import Any, Final

import click

from pillion_protocol.places import own_admin_address
from pilliond.admin_client import AdminClient, AdminError, credentials_of
from pilliond.shadow_tables import print_shadow

_LOOK_S: Final = 0.05


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


@command("status")
@admin_option
@json_option
def status(admin: str, as_json: bool) -> None:
    """Which version serves, which are loaded, who leases them, and what is under way."""
    told = client_of(admin).policy()
    if as_json:
        _print_json(told)
    else:
        _print_status(told)


@command("versions")
@click.argument("policy", default="")
@admin_option
@json_option
def versions(policy: str, admin: str, as_json: bool) -> None:
    """The versions in the daemon's store, and what each is to it."""
    client = client_of(admin)
    told = client.get(f"/v1/policies/{policy or client.policy()['policy']}/versions")
    if as_json:
        _print_json(told)
    else:
        _print_versions(told)


@command("stage")
@click.argument("policy")
@click.argument("version")
@reason_option
@wait_option
@admin_option
@json_option
def stage(policy: str, version: str, reason: str, wait: bool, admin: str, as_json: bool) -> None:
    """Tries a version and loads it beside the live one; it serves nobody yet."""
    client = client_of(admin)
    begun = client.post(f"/v1/policies/{policy}/stage", {"version": version, "reason": reason, "by": _who()})
    _show_operation(client, begun, wait, as_json)


@command("switch")
@click.argument("policy")
@click.argument("version")
@why_option
@wait_option
@admin_option
@json_option
def switch(policy: str, version: str, reason: str, wait: bool, admin: str, as_json: bool) -> None:
    """Lets new episodes lease VERSION: 1.2.3, a range, an alias or sha256:…. Those under way go on as they began."""
    client = client_of(admin)
    begun = client.post(f"/v1/policies/{policy}/switch", {"version": version, "reason": reason, "by": _who()})
    _show_operation(client, begun, wait, as_json)


@command("canary")
@click.argument("policy")
@click.argument("version", default="")
@click.option("--share", type=click.FloatRange(0.0, 1.0), required=True, help="Of new episodes; 0 ends it.")
@why_option
@wait_option
@admin_option
@json_option
def canary(policy: str, version: str, share: float, reason: str, wait: bool, admin: str, as_json: bool) -> None:
    """Lets VERSION answer a share of the new episodes, by a hash of their seeds. Other arms and the shadow stay."""
    if share and not version:
        raise click.UsageError("expected VERSION, unless --share is 0")
    client = client_of(admin)
    told = client.get(f"/v1/policies/{policy}")
    arms = [arm for arm in told["route"] if arm["name"] != "canary"]
    if share:
        arms.insert(0, {"name": "canary", "version": version, "share": share})
    body = {"arms": arms, "reason": reason, "by": _who()}
    _show_operation(client, client.put(f"/v1/policies/{policy}/route", body, client.tag), wait, as_json)


@command("shadow")
@click.argument("policy", default="")
@click.argument("version", default="")
@click.option(
    "--share", type=click.FloatRange(0.0, 1.0, min_open=True), default=1.0, help="Of the episodes. Default: all."
)
@click.option("--off", is_flag=True, help="End it.")
@reason_option
@wait_option
@admin_option
@json_option
def shadow(
    policy: str, version: str, share: float, off: bool, reason: str, wait: bool, admin: str, as_json: bool
) -> None:
    """Runs VERSION on what the stable one is asked and answers nobody; without VERSION: tells how the two compare."""
    client = client_of(admin)
    name = policy or client.policy()["policy"]
    if not version and not off:
        told = client.get(f"/v1/policies/{name}/shadow")
        if as_json:
            _print_json(told)
        else:
            print_shadow(told)
        return
    if not reason:
        raise click.UsageError("expected --reason")
    if version and off:
        raise click.UsageError("expected VERSION or --off")
    told = client.get(f"/v1/policies/{name}")
    body = {"arms": told["route"], "shadow": None if off else {"version": version, "share": share}}
    begun = client.put(f"/v1/policies/{name}/route", {**body, "reason": reason, "by": _who()}, client.tag)
    _show_operation(client, begun, wait, as_json)


@command("rollback")
@click.argument("policy", default="")
@why_option
@wait_option
@admin_option
@json_option
def rollback(policy: str, reason: str, wait: bool, admin: str, as_json: bool) -> None:
    """Goes back to the version that served before, at once where it is still loaded."""
    client = client_of(admin)
    name = policy or client.policy()["policy"]
    begun = client.post(f"/v1/policies/{name}/rollback", {"reason": reason, "by": _who()})
    _show_operation(client, begun, wait, as_json)


@command("drain")
@reason_option
@wait_option
@admin_option
@json_option
def drain(reason: str, wait: bool, admin: str, as_json: bool) -> None:
    """Answers what has arrived, says goodbye to every session, and ends the daemon."""
    client = client_of(admin)
    told = client.post("/v1/drain", {"reason": reason, "by": _who()})
    while wait and client.is_there():
        time.sleep(_LOOK_S)
    if as_json:
        _print_json({**told, "gone": wait})
    else:
        click.echo("gone" if wait else "draining")


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _show_operation(client: AdminClient, operation: dict[str, Any], wait: bool, as_json: bool) -> None:
    told = client.ended(operation) if wait else operation
    if as_json:
        _print_json(told)
        return
    effect = f", in effect after {told['effect_ms']:.1f} ms" if told["effect_ms"] is not None else ""
    click.echo(f"{told['kind']} {told['number']}: {told['policy']}@{told['version']} {told['outcome']}{effect}")


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, indent=2))


def _print_status(told: dict[str, Any]) -> None:
    table = _table("VERSION", "ROLE", "LEASES", "BATCH CERTIFICATE", "SIGNED BY", "DIGEST")
    for version in told["resident"]:
        certificate = version["certificate"]
        table.add_row(
            version["version"],
            version["role"],
            str(version["leases"]),
            certificate["batch"] if certificate else "not known",
            ", ".join(version["signed_by"]) or "nobody",
            version["digest"].removeprefix("sha256:")[:12],
        )
    follows = f", follows {told['follows']}" if told["follows"] else ""
    click.echo(f"{told['policy']}: {told['phase']}, {told['sessions']} sessions{follows}")
    _print(table)
    shadow = told["shadow"]
    if shadow:
        click.echo(f"shadow: {shadow['version']} beside {shadow['live']}, share {shadow['share']:g}, {shadow['state']}")
    operation = told["operation"]
    if operation:
        error = f": {operation['error']}" if operation["error"] else ""
        what = f"{operation['kind']} {operation['number']}: {operation['version']} by {operation['by']}"
        click.echo(f"{what}, {operation['step']}{error}")


def _print_versions(told: dict[str, Any]) -> None:
    table = _table("VERSION", "ROLE", "ALIASES", "DIGEST")
    for version in told["versions"]:
        digest = version["digest"].removeprefix("sha256:")[:12]
        table.add_row(version["version"], version["role"], ", ".join(version["aliases"]), digest)
    _print(table)


def _table(*headings: str) -> Any:
    from rich.table import Table

    return Table(*headings, box=None, pad_edge=False, header_style="bold")


def _print(table: Any) -> None:
    from rich.console import Console

    Console(highlight=False).print(table)
