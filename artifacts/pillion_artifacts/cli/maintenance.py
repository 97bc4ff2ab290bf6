"""`pillion artifact gc` and `fsck`: free disk space, and find and repair damage."""

from __future__ import annotations

from pathlib import Path

import click

from pillion.cli_support import examples, json_option, print_json
from pillion_artifacts.cli.options import change_options, html_option, open_store, store_option


@click.command(epilog=examples("pillion artifact gc --dry-run", "pillion artifact gc --grace 7 --keep-newest 3"))
@click.option(
    "--grace", metavar="DAYS", type=click.FloatRange(min=0), help="Keep versions younger than this; default: 30."
)
@click.option(
    "--keep-newest",
    metavar="N",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Keep this many of the newest releases of each policy.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")
@change_options
@store_option
@json_option
def gc(grace: float | None, keep_newest: int, dry_run: bool, by: str, reason: str, store: Path, as_json: bool) -> None:
    """Remove versions that nothing refers to.

    It keeps a version that an alias points at, or pointed at before it moved; that is pinned, held for an evaluation,
    part of a daemon's route or in use by a running daemon; that is younger than --grace; or that is among the newest. It
    also removes blobs that no version uses.
    """
    from datetime import timedelta

    import msgspec

    from pillion_artifacts.cli.listing import print_collection
    from pillion_artifacts.limits import GRACE_DAYS
    from pillion_artifacts.maintenance.garbage_collection import collect

    found = collect(
        open_store(store),
        grace=timedelta(days=GRACE_DAYS if grace is None else grace),
        keep_newest=keep_newest,
        dry_run=dry_run,
        by=by,
        reason=reason,
    )
    if as_json:
        print_json({"dry_run": dry_run, **msgspec.structs.asdict(found)})
    else:
        print_collection(found, dry_run)


@click.command()
@click.option("--repair", is_flag=True, help="Repair what the store can restore, and remove leftovers.")
@click.option("--quarantine", is_flag=True, help="With --repair: take damaged versions out of the index.")
@html_option
@change_options
@store_option
@json_option
def fsck(repair: bool, quarantine: bool, html: Path | None, by: str, reason: str, store: Path, as_json: bool) -> None:
    """Check the whole store, and repair it.

    It reads every byte and checks that the store's files agree. The exit code is 65 if damage remains.
    """
    from pillion_artifacts.cli.verification_report import finish_report, repair_and_report, verify_and_report

    if quarantine and not repair:
        raise click.UsageError("--quarantine: expected --repair with it")
    if repair:
        report = repair_and_report(open_store(store), quarantine, by, reason)
    else:
        report = verify_and_report(open_store(store), (), everything=True)
    finish_report(report, html, as_json)
