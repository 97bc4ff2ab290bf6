"""The operator's commands: `pillion status`, `versions`, `stage`, `canary`, `switch`, `rollback`, `drain`. They ask the admin port."""

from __future__ import annotations

import getpass
import json
import os
import time
from collections.abc import Callable
from typing import Any, Final

import click

from pilliond.admin_client import AdminClient, AdminError

DEFAULT_ADMIN: Final = "http://127.0.0.1:9475"
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


admin_option = click.option(
    "--admin",
    metavar="URL",
    envvar="PILLION_ADMIN__LISTEN",
    default=DEFAULT_ADMIN,
    show_default=True,
    help="The daemon's admin port: http://HOST:PORT or unix:///PATH.",
)
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
    told = AdminClient(admin).policy()
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
    client = AdminClient(admin)
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
    client = AdminClient(admin)
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
    client = AdminClient(admin)
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
    """Lets VERSION answer a share of the new episodes, by a hash of their seeds; other arms of the route end."""
    if share and not version:
        raise click.UsageError("expected VERSION, unless --share is 0")
    arms = [{"name": "canary", "version": version, "share": share}] if share else []
    client = AdminClient(admin)
    begun = client.put(f"/v1/policies/{policy}/route", {"arms": arms, "reason": reason, "by": _who()})
    _show_operation(client, begun, wait, as_json)


@command("rollback")
@click.argument("policy", default="")
@why_option
@wait_option
@admin_option
@json_option
def rollback(policy: str, reason: str, wait: bool, admin: str, as_json: bool) -> None:
    """Goes back to the version that served before, at once where it is still loaded."""
    client = AdminClient(admin)
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
    client = AdminClient(admin)
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
