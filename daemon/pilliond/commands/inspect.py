"""`pillion sessions`, `audit` and `warmup`."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from pillion.cli_support import json_option, new_table, print_json, print_table
from pilliond.commands.options import (
    admin_option,
    client_of,
    command,
    optional_version_argument,
    policy_argument,
    reason_option,
    user_name,
    wait_option,
)
from pilliond.commands.output import show_operation

limit_option = click.option(
    "--limit", metavar="N", type=click.IntRange(1, 1_000), default=100, show_default=True, help="Show at most N."
)


@command("sessions")
@limit_option
@click.option(
    "--after", metavar="SESSION", type=click.IntRange(0), default=0, help="Show only sessions opened after this one."
)
@admin_option
@json_option
def sessions(limit: int, after: int, admin: str, as_json: bool) -> None:
    """List the live sessions.

    For each session: its policy, version, episode groups, rows and acts, and how long it has been silent.
    """
    page = client_of(admin).get("/v1/sessions", {"limit": limit, "after": after})
    if as_json:
        print_json(page)
        return
    _print_sessions(page["sessions"])
    if page["next"] is not None:
        click.echo(f"there are more: --after {page['next']}")


@command("audit")
@limit_option
@click.option(
    "--before", metavar="NUMBER", type=click.IntRange(1), default=None, help="Show only records before this number."
)
@click.option("--policy", metavar="POLICY", default="", help="Show only records of this policy.")
@admin_option
@json_option
def audit(limit: int, before: int | None, policy: str, admin: str, as_json: bool) -> None:
    """Show the audit log.

    It lists the changes to the served policies, newest first, and reports whether the log was tampered with.
    """
    query: dict[str, int | str] = {"limit": limit}
    query |= {} if before is None else {"before": before}
    query |= {"policy": policy} if policy else {}
    page = client_of(admin).get("/v1/audit", query)
    if as_json:
        print_json(page)
        return
    from pillion_artifacts.cli.listing import print_history
    from pillion_artifacts.store.audit_log import Record

    print_history([msgspec.convert(record, Record) for record in page["records"]])
    if page["next"] is not None:
        click.echo(f"there are more: --before {page['next']}")
    for fault in page["faults"]:
        click.echo(f"the log is not intact: {fault}")


@command("warmup")
@policy_argument
@optional_version_argument
@reason_option
@wait_option
@admin_option
@json_option
def warmup(policy: str, version: str, reason: str, wait: bool, admin: str, as_json: bool) -> None:
    """Run every bucket of a loaded version once.

    Without VERSION it warms the stable version. Use it after a pause, before an episode that must be fast at once.
    """
    client = client_of(admin)
    body = {"version": version, "reason": reason, "by": user_name()}
    show_operation(client, client.post(f"/v1/policies/{policy}/warmup", body), wait, as_json)


def _print_sessions(sessions: list[dict[str, Any]]) -> None:
    rows = new_table(
        "SESSION", "CARRIER", "POLICY", "VERSION", "GROUPS", "ROWS", "ACTS", "LOCK STEP", "FALLBACK", "IDLE S"
    )
    # On a narrow terminal other columns wrap: a policy is told from another by its whole name.
    rows.columns[2].no_wrap = True
    for session in sessions:
        rows.add_row(
            str(session["id"]),
            session["carrier"],
            session["policy"],
            session["version"] + (" (held)" if session["is_evaluation"] else ""),
            str(session["groups"]),
            str(session["rows"]),
            str(session["acts"]),
            "yes" if session["lock_step"] else "no",
            session["fallback"],
            f"{session['idle_s']:.1f}",
        )
    print_table(rows)
