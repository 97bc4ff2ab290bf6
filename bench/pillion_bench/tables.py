"""Reports for people: what was measured, where, how often; and no percentile that too few samples stand behind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pillion_bench.percentiles import QUANTILES, is_supported

Report = Mapping[str, Any]

DASH_MEANS: Final = "–: fewer than ten samples lie beyond"
TABLE_STYLE: Final[dict[str, Any]] = {"title_justify": "left", "title_style": "bold", "box": SIMPLE_HEAD}

_WIDTH_UNSEEN: Final = 120


def print_load(report: Report) -> None:
    """The table of `pillion bench load`."""
    console = make_console()
    table = _latency_table(f"{_served(report)}, closed loop")
    count = report["n"]
    _add_latency(table, "round trip", report["latency_us"], count)
    _add_latency(table, "engine", report["engine_us"], count)
    _add_latency(table, "added (round trip - engine)", report["added_us"], count)
    _add_floors(table, report["floors"])
    console.print(table)
    console.print(DASH_MEANS, style="dim")
    console.print(
        f"{report['rows_per_s']:,.0f} rows/s from {report['sessions']} sessions of {report['rows']} rows over "
        f"{report['connections']} connections of {report['processes']} processes in {report['seconds']:g} s"
    )
    _print_floor_line(console, report)
    if report["daemon"]["ready_s"] is not None:
        daemon = report["daemon"]
        console.print(
            f"daemon: ready after {daemon['ready_s']:.2f} s, {daemon['resident_mb']:.0f} MB resident in both processes"
        )
    console.print(f"observations: {report['observations']}; errors: {report['errors']}")
    _print_place(console, report)


def print_replay(report: Report) -> None:
    """The table of `pillion bench replay`."""
    console = make_console()
    pace = "as fast as it goes" if report["speed"] == "max" else f"{report['speed']:g} x the recorded pace"
    table = _latency_table(f"{_served(report)}, open loop, {pace}")
    count = report["n"]
    _add_latency(table, "from when it was due", report["latency_us"], count)
    _add_latency(table, "engine", report["engine_us"], count)
    _add_latency(table, "added (due - engine)", report["added_us"], count)
    _add_latency(table, "from when it was sent", report["service_us"], count)
    console.print(table)
    console.print(DASH_MEANS, style="dim")
    for recording in report["recordings"]:
        console.print(
            f"{recording['file']}: {recording['n']} acts of {recording['episodes']} episodes by "
            f"{report['sessions']} sessions, {recording['mismatches']} mismatches"
        )
    if report["noise"] is not None:
        _print_floor_line(console, report)
    _print_place(console, report)


def print_floor(report: Report) -> None:
    """The table of `pillion bench floor`."""
    console = make_console()
    rows = report["rows"]
    table = _latency_table(f"floors under {_served(report)}, {rows} row{'s' if rows > 1 else ''}")
    _add_floors(table, report["floors"])
    console.print(table)
    console.print(DASH_MEANS, style="dim")
    console.print(f"{report['act_bytes']} bytes there, {report['action_bytes']} back; noise {report['noise']:.1%}")
    _print_place(console, report)


def print_record(report: Report) -> None:
    """The lines of `pillion bench record`."""
    make_console().print(
        f"{report['file']}: {report['steps']} steps of {report['episodes']} episodes of {report['environment']} "
        f"by {report['policy']}@{report['version']}, mean return {report['return_mean']:.2f}, "
        f"{report['bytes'] / 1e3:.0f} KB"
    )


def latency_cells(percentiles: Mapping[str, float | None], count: int) -> list[str]:
    """A cell for each percentile; a dash where fewer than ten samples lie beyond it."""
    return [_microseconds(percentiles[name]) if is_supported(name, count) else "–" for name in QUANTILES]


def _latency_table(title: str) -> Table:
    table = Table(title=title, **TABLE_STYLE)
    table.add_column("µs")
    table.add_column("n", justify="right")
    for name in QUANTILES:
        table.add_column(name, justify="right")
    return table


def _add_latency(table: Table, name: str, percentiles: Mapping[str, float], count: int) -> None:
    table.add_row(name, f"{count:,}", *latency_cells(percentiles, count))


def _add_floors(table: Table, floors: Mapping[str, Any]) -> None:
    names = {"zmq": "floor: raw pyzmq echo", "lane": "floor: raw Unix socket", "engine": "bare engine call"}
    for key, floor in floors.items():
        _add_latency(table, names[key], floor, floor["n"])


def _print_floor_line(console: Console, report: Report) -> None:
    ratio = report["added_over_floor_zmq"]
    console.print(
        f"added p50 is {ratio:.2f} x the raw pyzmq echo's ({_microseconds(report['floor_us']['zmq'])} µs, measured before "
        f"and after; the two differ by {report['noise']:.1%}, and less than that means nothing)"
    )


def _print_place(console: Console, report: Report) -> None:
    host = report["host"]
    console.print(
        f"placement: {report['pin']}; {host['cpus']} cpus, {host['cpu']}, Python {host['python']}", style="dim"
    )


def _served(report: Report) -> str:
    return f"{report['policy']}@{report['version']}"


def _microseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"


def make_console() -> Console:
    """Standard output; wide enough for a table where it is no terminal."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=_WIDTH_UNSEEN)
