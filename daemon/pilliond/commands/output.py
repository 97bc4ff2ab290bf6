"""How the operator's commands print operations."""

from __future__ import annotations

from typing import Any

import click

from pillion.cli_support import print_json, spinner
from pilliond.commands.admin_client import AdminClient


def show_operation(client: AdminClient, operation: dict[str, Any], wait: bool, as_json: bool) -> None:
    """Prints an operation, with `wait` once it has ended. Raises `AdminError` if it failed."""
    status = wait_for(client, operation) if wait else operation
    if as_json:
        print_json(status)
        return
    effect = f", in effect after {status['effect_ms']:.1f} ms" if status["effect_ms"] is not None else ""
    click.echo(
        f"{status['kind']} {status['number']}: {status['policy']}@{status['version']} {status['outcome']}{effect}"
    )


def wait_for(client: AdminClient, operation: dict[str, Any]) -> dict[str, Any]:
    """Returns an operation once it has ended; meanwhile a terminal shows its step."""
    label = f"{operation['kind']} {operation['number']}: {operation['policy']}@{operation['version']}"
    with spinner(label) as show:
        return client.ended(operation, lambda step: show(f"{label}: {step}"))
