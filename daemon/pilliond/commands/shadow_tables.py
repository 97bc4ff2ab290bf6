"""The report of a shadow as a table."""

from __future__ import annotations

from typing import Any

import click

from pillion.cli_support import new_table, print_table


def print_shadow(report: dict[str, Any]) -> None:
    """Prints the answer of `GET /v1/policies/{policy}/shadow`."""
    ended = f": {report['end_reason']}" if report["end_reason"] else ""
    versions = f"{report['policy']}@{report['version']} beside {report['live']}"
    click.echo(f"{versions}, share {report['share']:g}, {report['state']}{ended}")
    skipped = ", ".join(f"{rows} {reason}" for reason, rows in report["skipped_rows"].items() if rows) or "none"
    only_shadow = f"only the shadow not finite: {report['non_finite_rows']}"
    click.echo(f"{report['rows']} rows compared; not compared: {skipped}; {only_shadow}")
    if report["agreement"] is not None:
        click.echo(f"the actions agree in {100 * report['agreement']:.2f} % of them ({report['agreement_means']})")
    rows = new_table("OUTPUT", "AGREED", "DISTANCE MEAN", "MAX")
    for output in report["outputs"]:
        rows.add_row(
            output["name"],
            str(output["agreed_rows"]),
            _number(output["distance_mean"]),
            _number(output["distance_max"]),
        )
    print_table(rows)
    runs = report["inference"]
    if runs["batches"]:
        click.echo(
            f"{runs['batches']} runs: p50 {runs['p50_us']:.0f} µs, p99 {runs['p99_us']:.0f} µs wall time; "
            f"{runs['cpu_mean_us']:.0f} µs of CPU time each"
        )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
