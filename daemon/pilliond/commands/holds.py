"""`pillion holds`: versions that a daemon keeps loaded for evaluation campaigns."""

from __future__ import annotations

import re
from typing import Any, Final

import click
from click.core import ParameterSource

from pillion.cli_support import PillionGroup, examples, json_option, new_table, print_json, print_table
from pilliond.commands.options import (
    admin_option,
    client_of,
    explain,
    policy_argument,
    policy_option,
    required_reason_option,
    user_name,
    version_argument,
    wait_option,
)
from pilliond.commands.output import wait_for

_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def seconds(_context: click.Context, _parameter: click.Parameter, value: str) -> float:
    """Returns the seconds of `90m`, `24h`, `7d` or `30s`; raises `click.BadParameter`."""
    matched = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])", value)
    if matched is None:
        raise click.BadParameter(f"expected a time such as 90m, 24h or 7d, got {value!r}")
    return float(matched[1]) * _SECONDS[matched[2]]


@click.group(
    "holds",
    cls=PillionGroup,
    explain=explain,
    invoke_without_command=True,
    epilog=examples(
        "pillion holds",
        "pillion holds add walker 1.2.3 --name paper-fig-3 --for 7d --reason 'evaluation for the paper'",
        "pillion holds end walker paper-fig-3 --reason done",
    ),
)
@policy_option
@admin_option
@json_option
@click.pass_context
def holds(context: click.Context, policy: str, admin: str, as_json: bool) -> None:
    """List, add and end evaluation holds.

    An evaluation hold keeps a version loaded for a named campaign: neither a switch nor garbage collection removes it.
    Without a subcommand, the holds are listed.
    """
    if context.invoked_subcommand is not None:
        # Options before the subcommand count, unless the subcommand repeats them.
        is_given = context.get_parameter_source("admin") is not ParameterSource.DEFAULT
        defaults = {"as_json": as_json} | ({"admin": admin} if is_given else {})
        context.default_map = {context.invoked_subcommand: defaults}
        return
    client = client_of(admin)
    listed = client.get(f"/v1/policies/{policy or client.policy()['policy']}/holds")
    if as_json:
        print_json(listed)
    else:
        _print_holds(listed["holds"])


@holds.command("add")
@policy_argument
@version_argument
@click.option("--name", metavar="NAME", required=True, help="Name of the campaign.")
@click.option(
    "--for", "ttl_s", callback=seconds, metavar="TIME", required=True, help="How long to hold it: 90m, 24h, 7d."
)
@required_reason_option
@wait_option
@admin_option
@json_option
def add(policy: str, version: str, name: str, ttl_s: float, reason: str, wait: bool, admin: str, as_json: bool) -> None:
    """Hold a version for a campaign.

    The sessions of the campaign ask for it with the version "==1.2.3". Repeat the command to extend the hold: TIME
    counts from now.
    """
    client = client_of(admin)
    body = {"name": name, "version": version, "ttl_s": ttl_s, "reason": reason, "by": user_name()}
    path = f"/v1/policies/{policy}/holds"
    hold = client.post(path, body)
    if wait:
        wait_for(client, client.get(f"/v1/operations/{hold['operation']}"))
        hold = next(each for each in client.get(path)["holds"] if each["name"] == name)
    _show(hold, as_json)


@holds.command("end")
@policy_argument
@click.argument("name", metavar="NAME")
@required_reason_option
@admin_option
@json_option
def end(policy: str, name: str, reason: str, admin: str, as_json: bool) -> None:
    """End the hold of a campaign.

    The campaign begins no more episodes, and its version may be unloaded.
    """
    path = f"/v1/policies/{policy}/holds/{name}"
    _show(client_of(admin).delete(path, {"reason": reason, "by": user_name()}), as_json)


def _show(hold: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(hold)
        return
    state = "held" if hold["is_held"] else "not held"
    click.echo(f"hold {hold['name']}: {hold['policy']}@{hold['version']} until {_moment(hold['until'])}, {state}")


def _print_holds(holds: list[dict[str, Any]]) -> None:
    rows = new_table("NAME", "VERSION", "UNTIL", "HELD", "BY", "REASON")
    for hold in holds:
        held = "yes" if hold["is_held"] else "not yet"
        rows.add_row(hold["name"], hold["version"], _moment(hold["until"]), held, hold["by"], hold["reason"])
    print_table(rows)


def _moment(text: str) -> str:
    """Returns a time of the JSON, cut to the second."""
    return f"{text[:19]}Z"
