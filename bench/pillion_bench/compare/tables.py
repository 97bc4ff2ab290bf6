"""The tables of a comparison: for the terminal, and in Markdown for the root README."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table

from pillion_bench.compare.report import AGAIN, RATIOS, THROUGHPUT_LABEL, THROUGHPUT_RATIO, label_of
from pillion_bench.errors import ReportError
from pillion_bench.percentiles import QUANTILES
from pillion_bench.tables import DASH_NOTE, TABLE_STYLE, describe, latency_cells, make_console, print_table

Report = dict[str, Any]

BEGIN: Final = "<!-- compare: begin -->"
END: Final = "<!-- compare: end -->"
"""The table of a README is between these two lines."""


def print_compare(report: Report) -> None:
    """Prints the tables of `pillion bench compare`, its noise and its ratios."""
    console = make_console()
    for name in _names_of_all(report):
        console.print(f"{name}: {label_of(name)}", style="dim")
    for trial in report["trials"]:
        print_table(console, _table(trial))
        for row in trial["rows"]:
            if row["error"]:
                console.print(f"{row['name']}, {_clients(row['clients'])}: no figures: {row['error']}", style="red")
        _print_noise(console, trial["noise"])
        _print_ratios(console, trial["ratios"])
    console.print(
        f"placement: {report['pin']}; {report['seconds']:g} s x {report['repeat']} each; {describe(report['host'])}",
        style="dim",
    )


def load_report(path: Path) -> Report:
    """Reads a report that `pillion bench compare --json` printed; raises `ReportError`."""
    try:
        report = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise ReportError(f"{path}: expected a report of `pillion bench compare --json`: {error}") from None
    if report.get("report") != "pillion.compare":
        raise ReportError(f"{path}: expected a report of `pillion bench compare --json`, got another JSON object")
    return report


def markdown(report: Report) -> str:
    """Returns the README's table, with the machine and the noise below it."""
    clients = report["clients"]
    lines = [
        "| | " + " | ".join(f"{_clients(count)}" for count in clients) + " |",
        "| --- |" + " --- |" * len(clients),
    ]
    for trial in report["trials"]:
        lines.append(f"| **{trial['kind']}: {trial['policy']}, {trial['observation']}** |" + " |" * len(clients))
        lines += [_markdown_row(trial, name, clients) for name in _names(trial)]
    return "\n".join([*lines, "", *_footnotes(report)]) + "\n"


def write_between_markers(path: Path, text: str) -> None:
    """Replaces what is between the two markers of a file by `text`; raises `ReportError` if it has no markers."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ReportError(f"{path}: expected the lines {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n{text}{END}{after}")


def _table(trial: Report) -> Table:
    title = f"{trial['kind']}: {trial['policy']}@{trial['version']}, {trial['observation']}: added latency, µs"
    table = Table(title=title, **TABLE_STYLE)
    table.add_column("")
    for name in ("clients", "n", *QUANTILES, "rows/s", "engine p50"):
        table.add_column(name, justify="right")
    for row in trial["rows"]:
        table.add_row(row["name"], str(row["clients"]), f"{row['n']:,}", *_row_cells(row))
    return table


def _row_cells(row: Report) -> list[str]:
    if row["error"]:
        return ["no figures"]
    engine = "–" if row["name"].startswith("floor") else f"{row['engine_us']['p50']:,.1f}"
    return [*latency_cells(row["added_us"], row["n"]), f"{row['rows_per_s']:,.0f}", engine]


def _print_noise(console: Console, noise: Report) -> None:
    baselines = [f"{name.replace('_', '-')} {noise[name]:.1%}" for name in ("floor_lane", "floor_zmq") if noise[name]]
    if baselines:
        console.print(f"noise of the p50, before and after: {', '.join(baselines)}")
    for again in noise["again"]:
        shares = ", ".join(f"{name} {again[name]:.1%}" for name in QUANTILES)
        console.print(
            f"A/A noise, {again['name']} against itself, {_clients(again['clients'])}: {shares}, "
            f"rows/s {again['rows_per_s']:.1%}; smaller differences mean nothing"
        )


def _print_ratios(console: Console, ratios: Report) -> None:
    for key, label in [*((key, label) for key, label, _, _ in RATIOS), (THROUGHPUT_RATIO, THROUGHPUT_LABEL)]:
        if ratios[key] is not None:
            console.print(f"{label}: [bold]{ratios[key]:.2f}[/bold]")


def _names(trial: Report) -> Iterator[str]:
    """Yields each name once, in the order of the report. A second measurement only shows the noise."""
    for name in dict.fromkeys(row["name"] for row in trial["rows"]):
        if not name.endswith(AGAIN):
            yield name


def _names_of_all(report: Report) -> list[str]:
    return list(dict.fromkeys(name for trial in report["trials"] for name in _names(trial)))


def _markdown_row(trial: Report, name: str, clients: list[int]) -> str:
    rows = {row["clients"]: row for row in trial["rows"] if row["name"] == name}
    return f"| {label_of(name)} | " + " | ".join(_markdown_cell(rows.get(count)) for count in clients) + " |"


def _markdown_cell(row: Report | None) -> str:
    if row is None:
        return ""
    if row["error"]:
        return "no figures"
    shown = dict(zip(QUANTILES, latency_cells(row["added_us"], row["n"]), strict=True))
    return f"{shown['p50']} / {shown['p99']} / {shown['p99.9']} µs; {row['rows_per_s']:,.0f} rows/s; n {row['n']:,}"


def _footnotes(report: Report) -> Iterator[str]:
    host = report["host"]
    yield (
        f"p50 / p99 / p99.9 of added latency ({DASH_NOTE}), rows/s, and n, the number of acts; "
        f"each client is a process with one row. {host['cpu']}, {host['cpus']} CPUs, Python {host['python']}; "
        f"{report['pin']}; {report['seconds']:g} s × {report['repeat']} each, interleaved."
    )
    for trial in report["trials"]:
        noises = [again for again in trial["noise"]["again"] if again["clients"] == report["clients"][0]]
        if noises:
            shares = ", ".join(f"{name} {noises[0][name]:.1%}" for name in ("p50", "p99", "p99.9"))
            yield f"A/A noise of {trial['policy']}, {_clients(noises[0]['clients'])}: {shares}."


def _clients(count: int) -> str:
    return f"{count} client{'s' if count > 1 else ''}"
