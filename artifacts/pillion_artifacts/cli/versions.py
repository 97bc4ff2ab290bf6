"""`pillion artifact list`, `show`, `diff` and `history`: they read the store and change nothing."""

from __future__ import annotations

from pathlib import Path

import click

from pillion.cli_support import json_option, print_json
from pillion_artifacts.cli.options import open_store, policy_argument, reference_argument, store_option


@click.command("list")
@policy_argument
@store_option
@json_option
def list_versions(policy: str, store: Path, as_json: bool) -> None:
    """List versions, oldest first.

    Without POLICY it lists the versions of all policies.
    """
    from pillion_artifacts.cli.listing import list_store, print_listing

    rows = list_store(open_store(store), policy)
    print_json(rows) if as_json else print_listing(rows)


@click.command()
@reference_argument()
@store_option
@json_option
def show(reference: str, store: Path, as_json: bool) -> None:
    """Show a version with its files, card, signatures and history."""
    from pillion_artifacts.cli.listing import describe_version, print_description

    description = describe_version(open_store(store), reference)
    print_json(description) if as_json else print_description(description)


@click.command()
@reference_argument("before")
@reference_argument("after")
@store_option
@json_option
def diff(before: str, after: str, store: Path, as_json: bool) -> None:
    """Show the differences between two versions.

    It compares their files by digest, and their cards key by key.
    """
    from pillion_artifacts.cli.diff import compare, print_differences

    differences = compare(open_store(store), before, after)
    print_json(differences) if as_json else print_differences(differences)


@click.command()
@policy_argument
@store_option
@json_option
def history(policy: str, store: Path, as_json: bool) -> None:
    """Show the audit log of the store.

    Without POLICY it shows the records of all policies.
    """
    from pillion_artifacts.cli.listing import print_history

    records = open_store(store).history(policy)
    print_json(records) if as_json else print_history(records)
