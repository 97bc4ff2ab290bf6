"""Reports as tables: what was measured, where and how often. A percentile without enough samples is a dash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pillion_bench.percentiles import QUANTILES, is_supported

Report = Mapping[str, Any]

DASH_NOTE: Final = "– means fewer than ten samples above that percentile"
TABLE_STYLE: Final[dict[str, Any]] = {"title_justify": "left", "title_style": "bold", "box": SIMPLE_HEAD}

_WIDTH_OF_FILE: Final = 120


def print_load(report: Report) -> None:
    """Prints the table of `pillion bench load`."""
    console = make_console()
    table = _latency_table(f"{_served(report)}, closed loop")
    count = report["n"]
    _add_latency(table, "round trip", report["latency_us"], count)
    _add_latency(table, "engine", report["engine_us"], count)
    _add_latency(table, "added (round trip - engine)", report["added_us"], count)
    _add_baselines(table, report["floors"])
    print_table(console, table)
    console.print(
        f"{report['rows_per_s']:,.0f} rows/s from {report['sessions']} sessions of {report['rows']} rows over "
        f"{report['connections']} connections of {report['processes']} processes in {report['seconds']:g} s"
    )
    _print_baseline_ratio(console, report)
    if report["daemon"]["ready_s"] is not None:
        daemon = report["daemon"]
        console.print(
            f"daemon: ready after {daemon['ready_s']:.2f} s, {daemon['resident_mb']:.0f} MB resident in both processes"
        )
    console.print(f"observations: {report['observations']}; errors: {report['errors']}")
    print_host(console, report)


def print_replay(report: Report) -> None:
    """Prints the table of `pillion bench replay`."""
    console = make_console()
    pace = "as fast as possible" if report["speed"] == "max" else f"{report['speed']:g} x the recorded pace"
    table = _latency_table(f"{_served(report)}, open loop, {pace}")
    count = report["n"]
    _add_latency(table, "from due time", report["latency_us"], count)
    _add_latency(table, "engine", report["engine_us"], count)
    _add_latency(table, "added (from due time - engine)", report["added_us"], count)
    _add_latency(table, "from send time", report["service_us"], count)
    print_table(console, table)
    for recording in report["recordings"]:
        console.print(
            f"{recording['file']}: {recording['n']} acts of {recording['episodes']} episodes by "
            f"{report['sessions']} sessions, {recording['mismatches']} mismatches"
        )
    if report["noise"] is not None:
        _print_baseline_ratio(console, report)
    print_host(console, report)


def print_floor(report: Report) -> None:
    """Prints the table of `pillion bench floor`."""
    console = make_console()
    rows = report["rows"]
    table = _latency_table(f"baselines of {_served(report)}, {rows} row{'s' if rows > 1 else ''}")
    _add_baselines(table, report["floors"])
    print_table(console, table)
    console.print(
        f"{report['act_bytes']} bytes to the server, {report['action_bytes']} bytes back; noise {report['noise']:.1%}"
    )
    print_host(console, report)


def print_record(report: Report) -> None:
    """Prints the summary of `pillion bench record`."""
    make_console().print(
        f"{report['file']}: {report['steps']} steps of {report['episodes']} episodes of {report['environment']} "
        f"by {report['policy']}@{report['version']}, mean return {report['return_mean']:.2f}, "
        f"{report['bytes'] / 1e3:.0f} KB"
    )


def effect_table(title: str, parts: Mapping[str, Report], report: Report, effect: str) -> Table:
    """Returns a table of two sides, the A/A noise, and the effect of one side over the other, labelled `effect`.

    `parts` has the label of each side, and its `n` and `added_us`.
    """
    table = Table(title=title, **TABLE_STYLE)
    table.add_column("")
    for name in ("n", *QUANTILES):
        table.add_column(name, justify="right")
    for label, part in parts.items():
        _add_latency(table, label, part["added_us"], part["n"])
    table.add_row("A/A noise", "", *(f"{report['noise'][name]:.1%}" for name in QUANTILES))
    table.add_row(effect, "", *(f"{report['effect'][name]:+.1%}" for name in QUANTILES))
    return table


def latency_cells(percentiles: Mapping[str, float | None], count: int) -> list[str]:
    """Returns a cell for each percentile of `count` samples; a dash where there are too few samples."""
    return [_microseconds(percentiles[name]) if is_supported(name, count) else "–" for name in QUANTILES]


def print_table(console: Console, table: Table) -> None:
    """Prints a table, and below it what a dash means."""
    console.print(table)
    console.print(DASH_NOTE, style="dim")


def print_host(console: Console, report: Report) -> None:
    """Prints the placement and the machine."""
    console.print(f"placement: {report['pin']}; {describe(report['host'])}", style="dim")


def describe(host: Mapping[str, Any]) -> str:
    """Returns the machine of a report in one phrase."""
    return f"{host['cpus']} cpus, {host['cpu']}, Python {host['python']}"


def make_console() -> Console:
    """Returns a console on standard output, wide enough for a table even if that is not a terminal."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=_WIDTH_OF_FILE)


def _latency_table(title: str) -> Table:
    table = Table(title=title, **TABLE_STYLE)
    table.add_column("µs")
    table.add_column("n", justify="right")
    for name in QUANTILES:
        table.add_column(name, justify="right")
    return table


def _add_latency(table: Table, name: str, percentiles: Mapping[str, float], count: int) -> None:
    table.add_row(name, f"{count:,}", *latency_cells(percentiles, count))


def _add_baselines(table: Table, baselines: Mapping[str, Any]) -> None:
    names = {"zmq": "baseline: raw pyzmq echo", "lane": "baseline: raw Unix socket", "engine": "bare engine call"}
    for key, baseline in baselines.items():
        _add_latency(table, names[key], baseline, baseline["n"])


def _print_baseline_ratio(console: Console, report: Report) -> None:
    ratio = report["added_over_floor_zmq"]
    console.print(
        f"added p50 is {ratio:.2f} x the raw pyzmq echo ({_microseconds(report['floor_us']['zmq'])} µs). The echo was "
        f"measured before and after and differs by {report['noise']:.1%}; smaller differences mean nothing"
    )


def _served(report: Report) -> str:
    return f"{report['policy']}@{report['version']}"


def _microseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"
