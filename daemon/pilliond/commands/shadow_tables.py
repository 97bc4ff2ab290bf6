"""The report of a shadow as a table, for people."""

from __future__ import annotations

from typing import Any

import click

from pilliond.commands.output import print_table, table


def print_shadow(told: dict[str, Any]) -> None:
    """Prints what `GET …/shadow` gives."""
    ended = f": {told['end_reason']}" if told["end_reason"] else ""
    click.echo(
        f"{told['policy']}@{told['version']} beside {told['live']}, share {told['share']:g}, {told['state']}{ended}"
    )
    skipped = ", ".join(f"{rows} {reason}" for reason, rows in told["skipped_rows"].items() if rows) or "none"
    click.echo(
        f"{told['rows']} rows compared; not compared: {skipped}; only the shadow not finite: {told['non_finite_rows']}"
    )
    if told["agreement"] is not None:
        click.echo(f"the actions agree in {100 * told['agreement']:.2f} % of them ({told['agreement_means']})")
    rows = table("OUTPUT", "AGREED", "DISTANCE MEAN", "MAX")
    for output in told["outputs"]:
        rows.add_row(
            output["name"],
            str(output["agreed_rows"]),
            _number(output["distance_mean"]),
            _number(output["distance_max"]),
        )
    print_table(rows)
    runs = told["inference"]
    if runs["batches"]:
        click.echo(
            f"{runs['batches']} runs: p50 {runs['p50_us']:.0f} µs, p99 {runs['p99_us']:.0f} µs by the clock; "
            f"{runs['cpu_mean_us']:.0f} µs of processor time each"
        )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
