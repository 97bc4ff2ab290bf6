"""The operator's `pillion sessions` and `pillion audit`, and `pillion warmup`: who is there, who did what, and be ready."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from pilliond.commands.options import (
    admin_option,
    client_of,
    command,
    json_option,
    reason_option,
    wait_option,
    who,
)
from pilliond.commands.output import print_json, print_table, show_operation, table

limit_option = click.option(
    "--limit", type=click.IntRange(1, 1_000), default=100, show_default=True, help="At most so many."
)


@command("sessions")
@limit_option
@click.option("--after", type=click.IntRange(0), default=0, help="Those that were opened after this one.")
@admin_option
@json_option
def sessions(limit: int, after: int, admin: str, as_json: bool) -> None:
    """The live sessions: which version each leases, its episode groups and acts, and how long it has been silent."""
    told = client_of(admin).get("/v1/sessions", {"limit": limit, "after": after})
    if as_json:
        print_json(told)
        return
    _print_sessions(told["sessions"])
    if told["next"] is not None:
        click.echo(f"there are more: --after {told['next']}")


@command("audit")
@limit_option
@click.option("--before", type=click.IntRange(1), default=None, help="Those below this number.")
@admin_option
@json_option
def audit(limit: int, before: int | None, admin: str, as_json: bool) -> None:
    """Who changed what, newest first, and whether the log is as it was written."""
    query = {"limit": limit} | ({} if before is None else {"before": before})
    told = client_of(admin).get("/v1/audit", query)
    if as_json:
        print_json(told)
        return
    from pillion_artifacts.cli.listing import print_history
    from pillion_artifacts.store.audit_log import Record

    print_history([msgspec.convert(record, Record) for record in told["records"]])
    if told["next"] is not None:
        click.echo(f"there are more: --before {told['next']}")
    for fault in told["faults"]:
        click.echo(f"the log is not as it was written: {fault}")


@command("warmup")
@click.argument("policy")
@click.argument("version", default="")
@reason_option
@wait_option
@admin_option
@json_option
def warmup(policy: str, version: str, reason: str, wait: bool, admin: str, as_json: bool) -> None:
    """Runs every bucket of a loaded version once, the stable one where none is named: after idleness, before an episode."""
    client = client_of(admin)
    begun = client.post(f"/v1/policies/{policy}/warmup", {"version": version, "reason": reason, "by": who()})
    show_operation(client, begun, wait, as_json)


def _print_sessions(told: list[dict[str, Any]]) -> None:
    rows = table("SESSION", "CARRIER", "VERSION", "GROUPS", "ROWS", "ACTS", "LOCK STEP", "FALLBACK", "IDLE S")
    for session in told:
        rows.add_row(
            str(session["id"]),
            session["carrier"],
            session["version"] + (" (held)" if session["is_evaluation"] else ""),
            str(session["groups"]),
            str(session["rows"]),
            str(session["acts"]),
            "yes" if session["lock_step"] else "no",
            session["fallback"],
            f"{session['idle_s']:.1f}",
        )
    print_table(rows)
