"""The report of a verification: as text, as JSON, and as one web page that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from pillion_artifacts.cli.progress import bytes_bar
from pillion_artifacts.cli.tables import columns, short_digest, size
from pillion_artifacts.errors import InvalidArtifactError
from pillion_artifacts.maintenance.inspection import Fault, inspect_store
from pillion_artifacts.maintenance.repair import Repair
from pillion_artifacts.names import version_name
from pillion_artifacts.store.store import Resolved, Store
from pillion_artifacts.store.transaction import locked_where_possible, refusals, settle_for_reading
from pillion_artifacts.verify.trust_policy import TrustPolicy
from pillion_artifacts.verify.verification import Verdict, Verifier, all_versions


class Report(msgspec.Struct, frozen=True):
    """What was found of versions, and of the store as a whole where that was asked for."""

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
    """Verifies what the references mean, or all versions and the store itself. Raises `PolicyNotFoundError`."""
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
    """Mends what can be mended, then verifies everything."""
    before = verify_and_report(store, (), everything=True)
    damaged = [verdict for verdict in before.verdicts if not verdict.intact] if quarantine else []
    repair = Repair(store, by=by, reason=reason)
    repair.run(damaged)
    # what the first run took out of the index, or wrote anew, says what nothing names
    repair.run([])
    after = verify_and_report(store, (), everything=True)
    return msgspec.structs.replace(after, repairs=repair.done)


def report_as_json(report: Report) -> dict[str, Any]:
    """The report for programs; the verdicts with their `intact`."""
    fields: dict[str, Any] = msgspec.to_builtins(report)
    for verdict, found in zip(fields["verdicts"], report.verdicts, strict=True):
        verdict["intact"] = found.intact
    return {"intact": report.intact, **fields}


def print_report(report: Report) -> None:
    """The report as text."""
    rows = [
        (
            version_name(verdict.policy, verdict.version),
            short_digest(verdict.digest),
            str(verdict.files),
            size(verdict.size_bytes),
            ", ".join(verdict.signed_by) or str(verdict.attestations or ""),
            "intact" if verdict.intact else "REFUSED",
        )
        for verdict in report.verdicts
    ]
    print(columns(("VERSION", "DIGEST", "FILES", "SIZE", "SIGNED", "IS"), rows))
    for line in _lines(report):
        print(line)


def write_html(report: Report, file: Path) -> None:
    """The report as a page that loads nothing. Raises `StoreError` where it cannot be written."""
    with refusals(str(file)):
        file.write_text(as_html(report), encoding="utf-8")


def as_html(report: Report) -> str:
    """The report as a page; whatever comes from the store is escaped."""
    state = "intact" if report.intact else "damaged"
    rows = "".join(
        _html_row(
            "intact" if verdict.intact else "damaged",
            [
                version_name(verdict.policy, verdict.version),
                verdict.digest,
                str(verdict.files),
                size(verdict.size_bytes),
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
        versions=_html_table(["version", "digest", "files", "size", "signed", "is"], rows),
        faults=_html_table(["kind", "what"], faults) if faults else "<p>Nothing is wrong with the store itself.</p>",
        repairs=_html_table(["repaired"], repairs) if repairs else "",
    )


def _versions(store: Store) -> list[Resolved]:
    """Every version, or none where the index cannot be read: that is a fault of its own."""
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
<p>Store <code>{store}</code>, looked at {at}.</p>
<h2>Versions</h2>
{versions}
<h2>The store</h2>
{faults}
{repairs}
</body>
</html>
"""
