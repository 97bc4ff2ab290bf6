"""The table of `pillion bench switch`."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def print_switch(report: dict[str, Any]) -> None:
    """Prints the figures, and the counts of wrong answers."""
    console = Console()
    table = Table(title=f"{report['switches']} switches of {report['policy']}, {report['sessions']} lane clients")
    table.add_column("figure")
    table.add_column("measured", justify="right")
    for name, text in _rows(report):
        table.add_row(name, text)
    console.print(table)
    console.print(
        f"{report['acts']} acts in {report['episodes']} episodes: {report['wrong']} wrong, {report['mixed']} mixed, "
        f"{report['failed']} failed, {report['doubled']} doubled"
    )


def _rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    before, staging = report["before"], report["during_staging"]
    return [
        ("p99 before, µs", f"{before['latency_us']['p99']} (n {before['n']})"),
        ("p99 while a version is staged, µs", f"{staging['latency_us']['p99']} (n {staging['n']})"),
        ("staging / before", f"{report['staging_over_before_p99']}"),
        ("pause between answers at a switch, µs", _spread(report["gap_at_flip_us"])),
        ("the same without a switch, µs", _spread(report["gap_at_any_moment_us"])),
        ("longest pause within 20 ms of a switch, µs", _spread(report["gap_around_flip_us"])),
        ("the same without a switch, µs", _spread(report["gap_around_any_moment_us"])),
        ("switch to a loaded version, ms", _spread(report["switch_effect_ms"])),
        ("rollback, ms", _spread(report["rollback_effect_ms"])),
        ("staging, s", _spread(report["staging_s"])),
        ("load in the serving process, ms", _spread(report["load_ms"])),
        ("stall of its loop during the load, µs", _spread(report["load_stall_us"])),
        ("resident memory, MB", " → ".join(f"{value:.1f}" for value in report["resident_mb"].values())),
    ]


def _spread(values: dict[str, float]) -> str:
    if not values["n"]:
        return "–"
    return f"median {values['median']}, p90 {values['p90']}, worst {values['worst']} (n {values['n']:.0f})"
