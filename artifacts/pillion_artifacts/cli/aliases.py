"""`pillion artifact alias`, `rollback`, `pin` and `unpin`: names for versions, and protection from `gc`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pillion.cli_support import examples, json_option, print_json
from pillion_artifacts.cli.options import change_options, open_store, reference_argument, store_option


@click.command(
    epilog=examples(
        "pillion artifact alias lunar-lander@stable",
        "pillion artifact alias lunar-lander@stable 1.1.0 --expect 1.0.0 --reason 'passed review'",
        "pillion artifact alias lunar-lander@candidate --remove",
    )
)
@reference_argument("alias", metavar="NAME@ALIAS")
@click.argument("version", metavar="[VERSION]", default="")
@click.option(
    "--expect",
    metavar="VERSION",
    help="Version that it must point at now, or 'none'; default: what it pointed at when the command started.",
)
@click.option("--remove", is_flag=True, help="Remove the alias.")
@change_options
@store_option
@json_option
def alias(
    alias: str,
    version: str,
    expect: str | None,
    remove: bool,
    by: str,
    reason: str,
    store: Path,
    as_json: bool,
) -> None:
    """Show, move or remove an alias.

    With VERSION (a version, a range, a digest or another alias) it points NAME@ALIAS there. Without, it shows where the
    alias points. If two people move an alias at the same time, one of them gets an error.
    """
    from pillion_artifacts.cli.listing import move_or_read_alias

    _print_alias(move_or_read_alias(open_store(store), alias, version, expect, remove, by, reason), as_json)


@click.command()
@reference_argument("alias", metavar="NAME[@ALIAS]")
@change_options
@store_option
@json_option
def rollback(alias: str, by: str, reason: str, store: Path, as_json: bool) -> None:
    """Point an alias back at its previous version.

    Without @ALIAS it rolls back the alias 'stable'. Run it again to go back one more version.
    """
    from pillion_artifacts.store.aliases import roll_back_alias

    policy, _, name = alias.partition("@")
    _print_alias(roll_back_alias(open_store(store), policy, name or "stable", by=by, reason=reason), as_json)


@click.command()
@reference_argument()
@change_options
@store_option
@json_option
def pin(reference: str, by: str, reason: str, store: Path, as_json: bool) -> None:
    """Protect a version from gc.

    The version stays in the store until `unpin`.
    """
    from pillion_artifacts.store.pins import pin_version

    pinned = pin_version(open_store(store), reference, by=by, reason=reason)
    print_json(pinned) if as_json else print(f"{pinned.policy}@v{pinned.version} is pinned")


@click.command()
@reference_argument()
@change_options
@store_option
@json_option
def unpin(reference: str, by: str, reason: str, store: Path, as_json: bool) -> None:
    """Remove the pin of a version."""
    from pillion_artifacts.store.pins import unpin_version

    unpinned = unpin_version(open_store(store), reference, by=by, reason=reason)
    print_json(unpinned) if as_json else print(f"{unpinned} is no longer pinned")


def _print_alias(alias: Any, as_json: bool) -> None:
    if as_json:
        print_json(alias)
    else:
        print(f"{alias.policy}@{alias.alias} -> {alias.version or 'nothing'} {alias.digest}".rstrip())
