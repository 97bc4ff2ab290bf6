"""How the operator's commands print what the admin port has told them."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from pilliond.commands.admin_client import AdminClient


def show_operation(client: AdminClient, operation: dict[str, Any], wait: bool, as_json: bool) -> None:
    """Prints what came of an operation, or with `wait` what came of it in the end; raises `AdminError` where it failed."""
    told = wait_for(client, operation) if wait else operation
    if as_json:
        print_json(told)
        return
    effect = f", in effect after {told['effect_ms']:.1f} ms" if told["effect_ms"] is not None else ""
    click.echo(f"{told['kind']} {told['number']}: {told['policy']}@{told['version']} {told['outcome']}{effect}")


def wait_for(client: AdminClient, operation: dict[str, Any]) -> dict[str, Any]:
    """An operation once it has ended; meanwhile its step is on standard error, where that is a terminal."""
    from rich.console import Console

    if not sys.stderr.isatty():
        return client.ended(operation)
    what = f"{operation['kind']} {operation['number']}: {operation['policy']}@{operation['version']}"
    with Console(stderr=True).status(what) as status:
        return client.ended(operation, lambda step: status.update(f"{what}: {step}"))


def print_json(value: dict[str, Any]) -> None:
    """Prints an answer as programs read it."""
    click.echo(json.dumps(value, indent=2))


def table(*headings: str) -> Any:
    """A table with these headings, to be filled."""
    from rich.table import Table

    return Table(*headings, box=None, pad_edge=False, header_style="bold")


def print_table(table: Any) -> None:
    """Prints it."""
    from rich.console import Console

    Console(highlight=False).print(table)
