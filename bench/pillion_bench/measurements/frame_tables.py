"""The table of `pillion bench frames`."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from pillion_bench.percentiles import QUANTILES
from pillion_bench.tables import TABLE_STYLE, latency_cells, make_console, print_table


def print_frames(report: dict[str, Any]) -> None:
    """Prints a line for each size and path."""
    console = make_console()
    table = Table(
        title="over the lane: round trip less engine, µs; ratio: p50 over one copy plus ping-pong", **TABLE_STYLE
    )
    for name in ("bytes", "path", "n", *QUANTILES, "noise", "one copy", "ping-pong", "ratio"):
        table.add_column(name, justify="left" if name == "path" else "right")
    for row in report["rows"]:
        table.add_row(
            f"{row['bytes']:,}",
            row["path"],
            f"{row['n']:,}",
            *latency_cells(row["carrier_us"], row["n"]),
            f"{row['noise']:.1%}",
            f"{row['copy_us']:,.1f}",
            f"{row['ping_pong_us']:,.1f}",
            f"{row['carrier_over_copy_and_ping_pong']:.2f} x",
        )
    print_table(console, table)
    console.print(
        f"slots from {report['slot_bytes_min']:,} bytes on; {report['repeat']} rounds of {report['seconds']:g} s"
    )
    console.print(f"placement: {report['pin']}", style="dim")
