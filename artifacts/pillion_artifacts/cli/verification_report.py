"""The report of a verification: as text, as JSON, and as a web page that loads nothing else."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from pillion.cli_support import columns, format_bytes, print_json, short_digest
from pillion_artifacts.cli.progress import bytes_bar
from pillion_artifacts.errors import InvalidArtifactError
from pillion_artifacts.maintenance.inspection import Fault, inspect_store
from pillion_artifacts.maintenance.repair import Repair
from pillion_artifacts.names import version_name
from pillion_artifacts.store.store import Resolved, Store
from pillion_artifacts.store.transaction import locked_where_possible, refusals, settle_for_reading
from pillion_artifacts.verify.trust_policy import TrustPolicy
from pillion_artifacts.verify.verification import Verdict, Verifier, all_versions


class Report(msgspec.Struct, frozen=True):
    """The verdicts on versions, and the faults of the store itself if it was checked too."""

    store: str
    at: str
    verdicts: list[Verdict]
    faults: list[Fault]
    repairs: list[str] = []

    @property
    def intact(self) -> bool:
        return all(verdict.intact for verdict in self.verdicts) and not any(fault.harmful for fault in self.faults)


def verify_and_report(
    store: Store, references: Sequence[str], everything: bool, trust: TrustPolicy | None = None
) -> Report:
    """Verifies the versions that the references name, or all versions and the store itself. Raises `PolicyNotFoundError`."""
    at = store.now().isoformat(timespec="seconds")
    if not everything:
        versions = [store.resolve(reference) for reference in references]
        return Report(str(store.root), at, _verify(store, versions, trust), [])
    store.check_is_there()
    settle_for_reading(store.root)
    with locked_where_possible(store.root):
        faults = inspect_store(store)
        versions = _versions(store)
    return Report(str(store.root), at, _verify(store, versions, trust), faults)


def repair_and_report(store: Store, quarantine: bool, by: str, reason: str) -> Report:
    """Repairs what can be repaired, then verifies everything. With `quarantine` it takes damaged versions out of the index."""
    before = verify_and_report(store, (), everything=True)
    damaged = [verdict for verdict in before.verdicts if not verdict.intact] if quarantine else []
    repair = Repair(store, by=by, reason=reason)
    repair.run(damaged)
    # Only after the first run is it known which blobs no version uses.
    repair.run([])
    after = verify_and_report(store, (), everything=True)
    return msgspec.structs.replace(after, repairs=repair.done)


def report_as_json(report: Report) -> dict[str, Any]:
    """Returns the report for programs, each verdict with its `intact`."""
    fields: dict[str, Any] = msgspec.to_builtins(report)
    for verdict, found in zip(fields["verdicts"], report.verdicts, strict=True):
        verdict["intact"] = found.intact
    return {"intact": report.intact, **fields}


def print_report(report: Report) -> None:
    """Prints the report as text."""
    rows = [
        (
            version_name(verdict.policy, verdict.version),
            short_digest(verdict.digest),
            str(verdict.files),
            format_bytes(verdict.size_bytes),
            ", ".join(verdict.signed_by) or str(verdict.attestations or ""),
            "intact" if verdict.intact else "REFUSED",
        )
        for verdict in report.verdicts
    ]
    print(columns(("VERSION", "DIGEST", "FILES", "SIZE", "SIGNED", "VERDICT"), rows))
    for line in _lines(report):
        print(line)


def write_html(report: Report, file: Path) -> None:
    """Writes the report as a web page that loads nothing. Raises `StoreError` if it cannot be written."""
    with refusals(str(file)):
        file.write_text(as_html(report), encoding="utf-8")


def finish_report(report: Report, html_file: Path | None, as_json: bool) -> None:
    """Prints the report, and writes it to `html_file` if given; ends the command with exit code 65 if something is wrong."""
    if html_file is not None:
        write_html(report, html_file)
    print_json(report_as_json(report)) if as_json else print_report(report)
    if not report.intact:
        raise click.exceptions.Exit(os.EX_DATAERR)


def as_html(report: Report) -> str:
    """Returns the report as a web page; everything from the store is escaped."""
    state = "intact" if report.intact else "damaged"
    rows = "".join(
        _html_row(
            "intact" if verdict.intact else "damaged",
            [
                version_name(verdict.policy, verdict.version),
                verdict.digest,
                str(verdict.files),
                format_bytes(verdict.size_bytes),
                ", ".join(verdict.signed_by) or str(verdict.attestations or ""),
                "intact" if verdict.intact else "; ".join(verdict.faults),
            ],
        )
        for verdict in report.verdicts
    )
    faults = "".join(_html_row("damaged" if fault.harmful else "", [fault.kind, fault.text]) for fault in report.faults)
    repairs = "".join(_html_row("", [line]) for line in report.repairs)
    return _PAGE.format(
        state=state,
        store=html.escape(report.store),
        at=html.escape(report.at),
        versions=_html_table(["version", "digest", "files", "size", "signed", "verdict"], rows),
        faults=_html_table(["kind", "fault"], faults) if faults else "<p>The store itself has no faults.</p>",
        repairs=_html_table(["repaired"], repairs) if repairs else "",
    )


def _versions(store: Store) -> list[Resolved]:
    """Returns every version, or none if the index cannot be read: that is a fault of its own."""
    try:
        return all_versions(store)
    except InvalidArtifactError:
        return []


def _verify(store: Store, versions: list[Resolved], trust: TrustPolicy | None) -> list[Verdict]:
    total = sum(path.stat().st_size for path in (store.root / "blobs" / "sha256").glob("*") if path.is_file())
    if not versions:
        return []
    with bytes_bar(f"verifying {len(versions)} versions", total) as progress:
        verifier = Verifier(store, progress, trust)
        return [verifier.verify(resolved) for resolved in versions]


def _lines(report: Report) -> list[str]:
    lines = [f"repaired: {line}" for line in report.repairs]
    lines += [f"REFUSED: {fault}" for verdict in report.verdicts for fault in verdict.faults]
    lines += [f"{'DAMAGED' if fault.harmful else 'left over'}: {fault.text}" for fault in report.faults]
    damaged = sum(not verdict.intact for verdict in report.verdicts)
    count = len(report.verdicts)
    return [*lines, f"{count} versions, {damaged} of them refused" if damaged else f"{count} versions, all intact"]


def _html_table(head: list[str], rows: str) -> str:
    cells = "".join(f"<th>{cell}</th>" for cell in head)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>"


def _html_row(state: str, cells: list[str]) -> str:
    return f'<tr class="{state}">' + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Pillion artifacts: {state}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222; }}
table {{ border-collapse: collapse; width: 100%; margin: 1em 0; }}
th, td {{ border-bottom: 1px solid #ddd; padding: .3em .6em; text-align: left; vertical-align: top; }}
td {{ overflow-wrap: anywhere; }}
tr.intact td:last-child {{ color: #176b2c; }}
tr.damaged td {{ background: #fdecea; color: #8a1c12; }}
</style>
</head>
<body>
<h1>{state}</h1>
<p>Store <code>{store}</code>, checked at {at}.</p>
<h2>Versions</h2>
{versions}
<h2>The store</h2>
{faults}
{repairs}
</body>
</html>
"""
