"""The table of `pillion bench disturb`."""

from __future__ import annotations

from typing import Any

from pillion_bench.percentiles import QUANTILES, is_supported
from pillion_bench.tables import effect_table, make_console, print_table


def print_disturb(report: dict[str, Any]) -> None:
    """Prints the table, and a verdict for each percentile."""
    console = make_console()
    title = f"{report['policy']}@{report['version']}, open loop: added latency from due time, µs"
    parts = {name: report[name] for name in ("quiet", "disturbed")}
    print_table(console, effect_table(title, parts, report, "disturbed over quiet"))
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


def _verdict(report: dict[str, Any], name: str) -> str:
    effect, noise = report["effect"][name], report["noise"][name]
    return f"{name}: [bold]{report['verdict'][name]}[/bold] (effect {effect:+.1%}, noise {noise:.1%})"
