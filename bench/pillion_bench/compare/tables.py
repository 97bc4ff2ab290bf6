"""A comparison for people: the table of the terminal, and the Markdown table that the root README holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table

from pillion_bench.compare.report import AGAIN, RATIOS, THROUGHPUT_RATIO, THROUGHPUT_WORDS, words_of
from pillion_bench.errors import ReportError
from pillion_bench.percentiles import QUANTILES
from pillion_bench.tables import DASH_MEANS, TABLE_STYLE, latency_cells, make_console

Report = dict[str, Any]

BEGIN: Final = "<!-- compare: begin -->"
END: Final = "<!-- compare: end -->"
"""Between the two stands the table in a README."""


def print_compare(report: Report) -> None:
    """The tables of `pillion bench compare`, its noise and its ratios."""
    console = make_console()
    for name in _names_of_all(report):
        console.print(f"{name}: {words_of(name)}", style="dim")
    for trial in report["trials"]:
        console.print(_table(trial))
        console.print(DASH_MEANS, style="dim")
        for row in trial["rows"]:
            if row["error"]:
                console.print(f"{row['name']}, {_clients(row['clients'])}: no figures: {row['error']}", style="red")
        _print_noise(console, trial["noise"])
        _print_ratios(console, trial["ratios"])
    host = report["host"]
    console.print(
        f"placement: {report['pin']}; {report['seconds']:g} s x {report['repeat']} each; {host['cpus']} cpus, "
        f"{host['cpu']}, Python {host['python']}",
        style="dim",
    )


def load_report(path: Path) -> Report:
    """A report that `pillion bench compare --json` printed; raises `ReportError`."""
    try:
        report = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise ReportError(f"{path}: expected a report of `pillion bench compare --json`: {error}") from None
    if report.get("report") != "pillion.compare":
        raise ReportError(f"{path}: expected a report of `pillion bench compare --json`, got another JSON object")
    return report


def markdown(report: Report) -> str:
    """The README's table, with what it was measured on."""
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
    """Puts `text` between the two markers of a file; raises `ReportError` where it has none."""
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
    floors = [f"{name.replace('_', '-')} {noise[name]:.1%}" for name in ("floor_lane", "floor_zmq") if noise[name]]
    if floors:
        console.print(f"noise of the p50, before against after: {', '.join(floors)}")
    for again in noise["again"]:
        shares = ", ".join(f"{name} {again[name]:.1%}" for name in QUANTILES)
        console.print(
            f"A/A noise, {again['name']} against itself, {_clients(again['clients'])}: {shares}, "
            f"rows/s {again['rows_per_s']:.1%}; less than that means nothing"
        )


def _print_ratios(console: Console, ratios: Report) -> None:
    for key, words in [*((key, words) for key, words, _, _ in RATIOS), (THROUGHPUT_RATIO, THROUGHPUT_WORDS)]:
        if ratios[key] is not None:
            console.print(f"{words}: [bold]{ratios[key]:.2f}[/bold]")


def _names(trial: Report) -> Iterator[str]:
    """Each once, in the order of the report; what was measured again only shows the noise."""
    for name in dict.fromkeys(row["name"] for row in trial["rows"]):
        if not name.endswith(AGAIN):
            yield name


def _names_of_all(report: Report) -> list[str]:
    return list(dict.fromkeys(name for trial in report["trials"] for name in _names(trial)))


def _markdown_row(trial: Report, name: str, clients: list[int]) -> str:
    rows = {row["clients"]: row for row in trial["rows"] if row["name"] == name}
    return f"| {words_of(name)} | " + " | ".join(_markdown_cell(rows.get(count)) for count in clients) + " |"


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
        f"p50 / p99 / p99.9 of added latency (–: fewer than ten samples lie beyond), rows/s, and n, the acts counted; "
        f"each client is a process with one row. {host['cpu']}, {host['cpus']} CPUs, Python {host['python']}; "
        f"{report['pin']}; {report['seconds']:g} s × {report['repeat']} each, in turns."
    )
    for trial in report["trials"]:
        noises = [again for again in trial["noise"]["again"] if again["clients"] == report["clients"][0]]
        if noises:
            shares = ", ".join(f"{name} {noises[0][name]:.1%}" for name in ("p50", "p99", "p99.9"))
            yield f"A/A noise of {trial['policy']}, {_clients(noises[0]['clients'])}: {shares}."


def _clients(count: int) -> str:
    return f"{count} client{'s' if count > 1 else ''}"
