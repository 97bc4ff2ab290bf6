"""The operator's `pillion holds`: versions that are held for campaigns."""

from __future__ import annotations

import re
from typing import Any, Final

import click
from click.core import ParameterSource

from pilliond.commands.admin_client import AdminError
from pilliond.commands.options import (
    Failure,
    OperatorCommand,
    admin_option,
    client_of,
    json_option,
    wait_option,
    who,
    why_option,
)
from pilliond.commands.output import print_json, print_table, table, wait_for

_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def seconds(_context: click.Context, _parameter: click.Parameter, value: str) -> float:
    """The seconds of `90m`, `24h`, `7d`, `30s`; raises `click.BadParameter`."""
    matched = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])", value)
    if matched is None:
        raise click.BadParameter(f"expected a time such as 90m, 24h or 7d, got {value!r}")
    return float(matched[1]) * _SECONDS[matched[2]]


class OperatorGroup(click.Group):
    """Turns what the admin port cannot do into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AdminError as error:
            raise Failure(str(error), error.exit_code) from None


@click.group("holds", cls=OperatorGroup, invoke_without_command=True)
@admin_option
@json_option
@click.pass_context
def holds(context: click.Context, admin: str, as_json: bool) -> None:
    """The versions that are held for campaigns: neither a switch nor the collection of garbage takes them away."""
    if context.invoked_subcommand is not None:
        # What stands before the subcommand counts, unless it says otherwise.
        is_said = context.get_parameter_source("admin") is not ParameterSource.DEFAULT
        given = {"as_json": as_json} | ({"admin": admin} if is_said else {})
        context.default_map = {context.invoked_subcommand: given}
        return
    client = client_of(admin)
    told = client.get(f"/v1/policies/{client.policy()['policy']}/holds")
    if as_json:
        print_json(told)
    else:
        _print_holds(told["holds"])


@holds.command("add", cls=OperatorCommand)
@click.argument("policy")
@click.argument("version")
@click.option("--name", required=True, help="What the campaign calls it.")
@click.option("--for", "ttl_s", callback=seconds, metavar="TIME", required=True, help="How long: 90m, 24h, 7d.")
@why_option
@wait_option
@admin_option
@json_option
def add(policy: str, version: str, name: str, ttl_s: float, reason: str, wait: bool, admin: str, as_json: bool) -> None:
    """Holds VERSION for a campaign, whose sessions ask for it with version "==1.2.3". Again: it lasts from now on."""
    client = client_of(admin)
    body = {"name": name, "version": version, "ttl_s": ttl_s, "reason": reason, "by": who()}
    path = f"/v1/policies/{policy}/holds"
    told = client.post(path, body)
    if wait:
        wait_for(client, client.get(f"/v1/operations/{told['operation']}"))
        told = next(hold for hold in client.get(path)["holds"] if hold["name"] == name)
    _show(told, as_json)


@holds.command("end", cls=OperatorCommand)
@click.argument("policy")
@click.argument("name")
@why_option
@admin_option
@json_option
def end(policy: str, name: str, reason: str, admin: str, as_json: bool) -> None:
    """Ends the hold NAME: its campaign begins no more episodes, and its version may go."""
    path = f"/v1/policies/{policy}/holds/{name}"
    _show(client_of(admin).delete(path, {"reason": reason, "by": who()}), as_json)


def _show(hold: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(hold)
        return
    state = "held" if hold["is_held"] else "not held"
    click.echo(f"hold {hold['name']}: {hold['policy']}@{hold['version']} until {_moment(hold['until'])}, {state}")


def _print_holds(told: list[dict[str, Any]]) -> None:
    rows = table("NAME", "VERSION", "UNTIL", "HELD", "BY", "WHY")
    for hold in told:
        held = "yes" if hold["is_held"] else "not yet"
        rows.add_row(hold["name"], hold["version"], _moment(hold["until"]), held, hold["by"], hold["reason"])
    print_table(rows)


def _moment(text: str) -> str:
    """A time of the JSON, to the second."""
    return f"{text[:19]}Z"
