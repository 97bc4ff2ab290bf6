"""The operator's commands: `pillion status`, `versions`, `stage`, `canary`, `shadow`, `switch`, `rollback`, `drain`. They ask the admin port."""

from __future__ import annotations

import time
from typing import Any, Final

import click

from pilliond.commands.options import (
    admin_option,
    client_of,
    command,
    json_option,
    reason_option,
    wait_option,
    who,
    why_option,
)
from pilliond.commands.output import print_json, print_table, show_operation, table
from pilliond.commands.shadow_tables import print_shadow

_LOOK_S: Final = 0.05


@command("status")
@admin_option
@json_option
def status(admin: str, as_json: bool) -> None:
    """Which version serves, which are loaded, who leases them, and what is under way."""
    told = client_of(admin).policy()
    if as_json:
        print_json(told)
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
        print_json(told)
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
    begun = client.post(f"/v1/policies/{policy}/stage", {"version": version, "reason": reason, "by": who()})
    show_operation(client, begun, wait, as_json)


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
    begun = client.post(f"/v1/policies/{policy}/switch", {"version": version, "reason": reason, "by": who()})
    show_operation(client, begun, wait, as_json)


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
    body = {"arms": arms, "reason": reason, "by": who()}
    show_operation(client, client.put(f"/v1/policies/{policy}/route", body, client.tag), wait, as_json)


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
            print_json(told)
        else:
            print_shadow(told)
        return
    if not reason:
        raise click.UsageError("expected --reason")
    if version and off:
        raise click.UsageError("expected VERSION or --off")
    told = client.get(f"/v1/policies/{name}")
    body = {"arms": told["route"], "shadow": None if off else {"version": version, "share": share}}
    begun = client.put(f"/v1/policies/{name}/route", {**body, "reason": reason, "by": who()}, client.tag)
    show_operation(client, begun, wait, as_json)


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
    begun = client.post(f"/v1/policies/{name}/rollback", {"reason": reason, "by": who()})
    show_operation(client, begun, wait, as_json)


@command("drain")
@reason_option
@wait_option
@admin_option
@json_option
def drain(reason: str, wait: bool, admin: str, as_json: bool) -> None:
    """Answers what has arrived, says goodbye to every session, and ends the daemon."""
    client = client_of(admin)
    told = client.post("/v1/drain", {"reason": reason, "by": who()})
    while wait and client.is_there():
        time.sleep(_LOOK_S)
    if as_json:
        print_json({**told, "gone": wait})
    else:
        click.echo("gone" if wait else "draining")


def _print_status(told: dict[str, Any]) -> None:
    rows = table("VERSION", "ROLE", "LEASES", "BATCH CERTIFICATE", "SIGNED BY", "DIGEST")
    for version in told["resident"]:
        certificate = version["certificate"]
        rows.add_row(
            version["version"],
            version["role"],
            str(version["leases"]),
            certificate["batch"] if certificate else "not known",
            ", ".join(version["signed_by"]) or "nobody",
            version["digest"].removeprefix("sha256:")[:12],
        )
    follows = f", follows {told['follows']}" if told["follows"] else ""
    click.echo(f"{told['policy']}: {told['phase']}, {told['sessions']} sessions{follows}")
    print_table(rows)
    shadow = told["shadow"]
    if shadow:
        click.echo(f"shadow: {shadow['version']} beside {shadow['live']}, share {shadow['share']:g}, {shadow['state']}")
    operation = told["operation"]
    if operation:
        error = f": {operation['error']}" if operation["error"] else ""
        what = f"{operation['kind']} {operation['number']}: {operation['version']} by {operation['by']}"
        click.echo(f"{what}, {operation['step']}{error}")


def _print_versions(told: dict[str, Any]) -> None:
    rows = table("VERSION", "ROLE", "ALIASES", "DIGEST")
    for version in told["versions"]:
        digest = version["digest"].removeprefix("sha256:")[:12]
        rows.add_row(version["version"], version["role"], ", ".join(version["aliases"]), digest)
    print_table(rows)
