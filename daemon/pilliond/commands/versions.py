"""`pillion status`, `versions`, `stage`, `switch`, `canary`, `shadow`, `rollback` and `drain`."""

from __future__ import annotations

import time
from typing import Any, Final

import click

from pillion.cli_support import examples, json_option, new_table, print_json, print_table, short_digest
from pilliond.commands.options import (
    admin_option,
    client_of,
    command,
    optional_policy_argument,
    optional_version_argument,
    policy_argument,
    reason_option,
    required_reason_option,
    user_name,
    version_argument,
    wait_option,
)
from pilliond.commands.output import show_operation
from pilliond.commands.shadow_tables import print_shadow

_POLL_S: Final = 0.05
_PLACES: Final = {"inline": "inline", "worker": "in a worker"}


@command("status")
@optional_policy_argument
@admin_option
@json_option
def status(policy: str, admin: str, as_json: bool) -> None:
    """Show the stable version and the loaded versions.

    It also shows how many episodes lease each version, where it runs and why, the shadow, and the last operation. If the
    daemon serves several policies, it shows all of them unless you name one.
    """
    client = client_of(admin)
    states = [client.get(f"/v1/policies/{policy}")] if policy else client.policies()
    if as_json:
        print_json(states[0] if len(states) == 1 else {"policies": states})
        return
    for state in states:
        _print_status(state)


@command("versions")
@optional_policy_argument
@admin_option
@json_option
def versions(policy: str, admin: str, as_json: bool) -> None:
    """List versions and their state.

    It lists the versions in the daemon's store, each with its role: stable, previous, the name of an arm, shadow,
    evaluation, resident (loaded without a role) or stored.
    """
    client = client_of(admin)
    listed = client.get(f"/v1/policies/{policy or client.policy()['policy']}/versions")
    if as_json:
        print_json(listed)
    else:
        _print_versions(listed)


@command("stage")
@policy_argument
@version_argument
@reason_option
@wait_option
@admin_option
@json_option
def stage(policy: str, version: str, reason: str, wait: bool, admin: str, as_json: bool) -> None:
    """Check a version and load it beside the stable one.

    The version answers no episode until a switch or a canary routes episodes to it.
    """
    client = client_of(admin)
    begun = client.post(f"/v1/policies/{policy}/stage", {"version": version, "reason": reason, "by": user_name()})
    show_operation(client, begun, wait, as_json)


@command(
    "switch",
    epilog=examples(
        "pillion switch walker 1.2.3 --reason 'passed the canary' --wait",
        "pillion switch walker '>=1.2,<2' --reason 'newest 1.x'",
    ),
)
@policy_argument
@version_argument
@required_reason_option
@wait_option
@admin_option
@json_option
def switch(policy: str, version: str, reason: str, wait: bool, admin: str, as_json: bool) -> None:
    """Switch new episodes to another version.

    VERSION is 1.2.3, a range, an alias or sha256:DIGEST. Episodes under way end on the version that they began with.
    """
    client = client_of(admin)
    begun = client.post(f"/v1/policies/{policy}/switch", {"version": version, "reason": reason, "by": user_name()})
    show_operation(client, begun, wait, as_json)


@command(
    "canary",
    epilog=examples(
        "pillion canary walker 1.3.0 --share 0.05 --reason 'first 5 %' --wait",
        "pillion canary walker --share 0 --reason 'end the canary'",
    ),
)
@policy_argument
@optional_version_argument
@click.option(
    "--share",
    metavar="FRACTION",
    type=click.FloatRange(0.0, 1.0),
    required=True,
    help="Fraction of new episodes, 0 to 1; 0 ends the canary.",
)
@required_reason_option
@wait_option
@admin_option
@json_option
def canary(policy: str, version: str, share: float, reason: str, wait: bool, admin: str, as_json: bool) -> None:
    """Route a share of new episodes to another version.

    A hash of its seed decides which version an episode gets. Other arms and the shadow stay as they are.
    """
    if share and not version:
        raise click.UsageError("expected VERSION, unless --share is 0")
    client = client_of(admin)
    state = client.get(f"/v1/policies/{policy}")
    arms = [arm for arm in state["route"] if arm["name"] != "canary"]
    if share:
        arms.insert(0, {"name": "canary", "version": version, "share": share})
    body = {"arms": arms, "reason": reason, "by": user_name()}
    show_operation(client, client.put(f"/v1/policies/{policy}/route", body, client.tag), wait, as_json)


@command(
    "shadow",
    epilog=examples(
        "pillion shadow walker 1.3.0 --share 0.1 --reason 'compare before the canary' --wait",
        "pillion shadow",
        "pillion shadow walker --off --reason 'seen enough'",
    ),
)
@optional_policy_argument
@optional_version_argument
@click.option(
    "--share",
    metavar="FRACTION",
    type=click.FloatRange(0.0, 1.0, min_open=True),
    default=1.0,
    help="Fraction of the episodes, up to 1; default: all.",
)
@click.option("--off", is_flag=True, help="Stop the shadow.")
@reason_option
@wait_option
@admin_option
@json_option
def shadow(
    policy: str, version: str, share: float, off: bool, reason: str, wait: bool, admin: str, as_json: bool
) -> None:
    """Compare a version with the stable one on live rows.

    The shadow runs the observations that the stable version gets; its actions are compared and never sent. Without
    VERSION, the command prints the comparison so far.
    """
    client = client_of(admin)
    name = policy or client.policy()["policy"]
    if not version and not off:
        report = client.get(f"/v1/policies/{name}/shadow")
        if as_json:
            print_json(report)
        else:
            print_shadow(report)
        return
    if not reason:
        raise click.UsageError("expected --reason")
    if version and off:
        raise click.UsageError("expected VERSION or --off")
    state = client.get(f"/v1/policies/{name}")
    body = {"arms": state["route"], "shadow": None if off else {"version": version, "share": share}}
    begun = client.put(f"/v1/policies/{name}/route", {**body, "reason": reason, "by": user_name()}, client.tag)
    show_operation(client, begun, wait, as_json)


@command("rollback")
@optional_policy_argument
@required_reason_option
@wait_option
@admin_option
@json_option
def rollback(policy: str, reason: str, wait: bool, admin: str, as_json: bool) -> None:
    """Roll back to the previous version.

    It takes effect at once if the previous version is still loaded.
    """
    client = client_of(admin)
    name = policy or client.policy()["policy"]
    begun = client.post(f"/v1/policies/{name}/rollback", {"reason": reason, "by": user_name()})
    show_operation(client, begun, wait, as_json)


@command("drain")
@reason_option
@wait_option
@admin_option
@json_option
def drain(reason: str, wait: bool, admin: str, as_json: bool) -> None:
    """Answer pending requests, then stop the daemon.

    Every session gets a goodbye message.
    """
    client = client_of(admin)
    answer = client.post("/v1/drain", {"reason": reason, "by": user_name()})
    while wait and client.is_there():
        time.sleep(_POLL_S)
    if as_json:
        print_json({**answer, "gone": wait})
    else:
        click.echo("stopped" if wait else "draining")


def _print_status(state: dict[str, Any]) -> None:
    rows = new_table("VERSION", "ROLE", "LEASES", "RUNS", "BATCH CERTIFICATE", "SIGNED BY", "DIGEST")
    for version in state["resident"]:
        certificate = version["certificate"]
        rows.add_row(
            version["version"],
            version["role"],
            str(version["leases"]),
            _runs(version["placement"], version["worker"]["state"] if version["worker"] else "") or "unknown",
            certificate["batch"] if certificate else "unknown",
            ", ".join(version["signed_by"]) or "nobody",
            short_digest(version["digest"]),
        )
    follows = f", follows {state['follows']}" if state["follows"] else ""
    click.echo(f"{state['policy']}: {state['phase']}, {state['sessions']} sessions{follows}")
    print_table(rows)
    for version in state["resident"]:
        if version["placement_reason"]:
            device = f" on {version['device']}" if version["device"] else ""
            place = f"{_PLACES[version['placement']]}{device}"
            click.echo(f"{version['version']} runs {place}: {version['placement_reason']}")
        if version["fallback"]:
            click.echo(f"{version['version']} falls back: {version['fallback']}")
        if version["replicas"]:
            for worker in version["replicas"]:
                on_device = f" on {worker['device']}" if worker["device"] else ""
                click.echo(f"{version['version']} replica {worker['replica']}{on_device} {_worker_line(worker)}")
        elif version["worker"]:
            click.echo(f"{version['version']} {_worker_line(version['worker'])}")
    shadow = state["shadow"]
    if shadow:
        click.echo(f"shadow: {shadow['version']} beside {shadow['live']}, share {shadow['share']:g}, {shadow['state']}")
    operation = state["operation"]
    if operation:
        error = f": {operation['error']}" if operation["error"] else ""
        label = f"{operation['kind']} {operation['number']}: {operation['version']} by {operation['by']}"
        click.echo(f"{label}, {operation['step']}{error}")


def _print_versions(listed: dict[str, Any]) -> None:
    rows = new_table("VERSION", "ROLE", "RUNS", "ALIASES", "DIGEST")
    for version in listed["versions"]:
        aliases = ", ".join(version["aliases"])
        rows.add_row(
            version["version"],
            version["role"],
            _runs(version["placement"], version["worker_state"]),
            aliases,
            short_digest(version["digest"]),
        )
    print_table(rows)


def _runs(placement: str, worker_state: str) -> str:
    """Where a version runs; of a worker that does not serve, its state too."""
    return placement if worker_state in ("", "ready") else f"{placement}, {worker_state}"


def _worker_line(worker: dict[str, Any]) -> str:
    """The worker of a version in words."""
    if worker["state"] == "out":
        return f"is out: {worker['reason']}"
    parts = [f"worker: {worker['state']}"]
    parts += [f"pid {worker['pid']}"] if worker["pid"] is not None else []
    parts += [f"{worker['memory']} memory"] if worker["memory"] else []
    parts += [f"{worker['restarts']} restarts, the last because {worker['reason']}"] if worker["restarts"] else []
    return ", ".join(parts)
