"""Quiet against disturbed, for people."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from pillion_bench.percentiles import QUANTILES, is_supported
from pillion_bench.tables import DASH_MEANS, TABLE_STYLE, latency_cells, make_console


def print_disturb(report: dict[str, Any]) -> None:
    """The table of `pillion bench disturb`, and its verdict."""
    console = make_console()
    console.print(_table(report))
    console.print(DASH_MEANS, style="dim")
    console.print(
        f"{report['scrapes']} scrapes and {report['health_checks']} health checks, {report['refused']} refused; "
        f"{report['log_lines']} log lines at debug level; {report['acts_per_s']:,.0f} acts/s by {report['sessions']} "
        f"sessions over {report['carrier']}, every action as recorded; {report['rounds']} rounds of four segments of "
        f"{report['segment_s']:g} s"
    )
    console.print(f"placement: {report['pin']}; the scraper on cpu {report['operator_cpus']}", style="dim")
    for name in QUANTILES:
        if is_supported(name, report["disturbed"]["n"]):
            console.print(_verdict(report, name))


def _table(report: dict[str, Any]) -> Table:
    title = f"{report['policy']}@{report['version']}, open loop: added latency from when an act was due, µs"
    table = Table(title=title, **TABLE_STYLE)
    table.add_column("")
    for name in ("n", *QUANTILES):
        table.add_column(name, justify="right")
    for words in ("quiet", "disturbed"):
        part = report[words]
        table.add_row(words, f"{part['n']:,}", *latency_cells(part["added_us"], part["n"]))
    table.add_row("A/A noise", "", *(f"{report['noise'][name]:.1%}" for name in QUANTILES))
    table.add_row("disturbed over quiet", "", *(f"{report['effect'][name]:+.1%}" for name in QUANTILES))
    return table


def _verdict(report: dict[str, Any], name: str) -> str:
    return f"{name}: [bold]{report['verdict'][name]}[/bold] ({report['effect'][name]:+.1%} against {report['noise'][name]:.1%})"
