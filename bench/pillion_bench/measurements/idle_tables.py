"""Idle costs, for people."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from pillion_bench.percentiles import QUANTILES
from pillion_bench.tables import DASH_MEANS, TABLE_STYLE, latency_cells, make_console


def print_idle(report: dict[str, Any]) -> None:
    """The table of `pillion bench idle`."""
    console = make_console()
    table = Table(title="one active session over " + report["carrier"] + ": added latency, µs", **TABLE_STYLE)
    table.add_column("")
    for name in ("n", *QUANTILES):
        table.add_column(name, justify="right")
    for key, words in (("alone", "alone"), ("crowded", f"beside {report['sessions']:,} silent ones")):
        part = report[key]
        table.add_row(words, f"{part['n']:,}", *latency_cells(part["added_us"], part["n"]))
    table.add_row("A/A noise", "", *(f"{report['noise'][name]:.1%}" for name in QUANTILES))
    table.add_row("crowded over alone", "", *(f"{report['effect'][name]:+.1%}" for name in QUANTILES))
    console.print(table)
    console.print(DASH_MEANS, style="dim")
    shares = report["cpu_share"]
    console.print(
        f"with nobody active the daemon takes {shares['alone']:.2%} of a core, with {report['sessions']:,} silent "
        f"sessions {shares['crowded']:.2%}"
    )
    console.print(f"placement: {report['pin']}", style="dim")
