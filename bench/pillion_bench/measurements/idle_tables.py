"""The table of `pillion bench idle`."""

from __future__ import annotations

from typing import Any

from pillion_bench.tables import effect_table, make_console, print_table


def print_idle(report: dict[str, Any]) -> None:
    """Prints the table, and the processor time of a daemon without an active session."""
    console = make_console()
    sessions = f"{report['sessions']:,} idle sessions"
    title = f"one active session over {report['carrier']}: added latency, µs"
    parts = {"alone": report["alone"], f"beside {sessions}": report["crowded"]}
    print_table(console, effect_table(title, parts, report, "crowded over alone"))
    shares = report["cpu_share"]
    console.print(
        f"without an active session the daemon uses {shares['alone']:.2%} of a core; with {sessions} it uses "
        f"{shares['crowded']:.2%}"
    )
    console.print(f"placement: {report['pin']}", style="dim")
