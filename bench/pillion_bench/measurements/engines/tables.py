"""The tables of `pillion bench engine` and `pillion bench budget`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from pillion_bench.measurements.engines.crossing import WORKERS, kinds_of
from pillion_bench.measurements.engines.engine import BESIDE, CACHE, INTERPRETER, KILL, MEMORY, ROWS, SLOTS, START
from pillion_bench.percentiles import QUANTILES
from pillion_bench.tables import TABLE_STYLE, describe, latency_cells, make_console, print_table

_LABELS = {
    "inline": "inline",
    "bare": "bare torch call",
    "worker": "in a worker",
    "worker_asleep": "in a worker that sleeps",
    "worker_spinning": "in a worker, both sides spin",
    "doorbell": "bare doorbell",
}


def print_engine(report: dict[str, Any]) -> None:
    """Prints the first table, and a line or two for each other part."""
    console = make_console()
    table = _table(f"{report['policy']}, one lane client: round trip, µs", "A/A noise")
    for kind in kinds_of(report["engine"]):
        figures = report[f"{kind}_us"]
        cells = latency_cells(figures, figures["n"])
        table.add_row(_LABELS[kind], f"{figures['n']:,}", *cells, f"{report['noise'][kind]:.1%}")
    print_table(console, table)
    for kind in WORKERS:
        console.print(
            f"{_LABELS[kind]}: {report['added_us'][kind]:+.1f} µs at p50, {report['added_over_doorbell'][kind]:.2f} x "
            "a bare doorbell"
        )
    parts: dict[str, Callable[[Console, dict[str, Any]], None]] = {
        ROWS: _print_rows,
        BESIDE: _print_beside,
        KILL: _print_kills,
        SLOTS: _print_slots,
        CACHE: _print_cached,
        INTERPRETER: _print_interpreter,
        START: _print_start,
        MEMORY: _print_memory,
    }
    for part, print_part in parts.items():
        if part in report:
            print_part(console, report[part])
    console.print(f"placement: {report['pin']}; {describe(report['host'])}", style="dim")


def print_budget(report: dict[str, Any]) -> None:
    """Prints what became of the acts."""
    console = make_console()
    refusal = report["refusal_us"]
    console.print(
        f"{report['acts']:,} acts with a budget of {report['budget_ms']:g} ms at a policy of {report['run_ms']:g} ms: "
        f"{report['dispatched_late']} were dispatched after their budget"
    )
    console.print(
        f"answered: {report['answered']:,}, in time {report['answered_in_time']:,}; refused: {_codes(report['refused'])}"
    )
    if refusal["n"]:
        console.print(
            f"a refusal arrives {refusal['p50']:+,.0f} µs (p50) and {refusal['p99']:+,.0f} µs (p99) after the end of "
            f"the budget; {report['refused_before_the_end']:,} of {refusal['n']:,} arrive before it"
        )
    console.print(f"placement: {report['pin']}; {describe(report['host'])}", style="dim")


def _print_rows(console: Console, part: dict[str, Any]) -> None:
    rates, noise = part["rows_per_s"], part["noise"]
    console.print(
        f"{part['rows']} rows of {part['policy']}: {rates['bare']:,.0f} rows/s of the bare engine "
        f"(A/A noise {noise['bare']:.1%})"
    )
    for kind, depth in (("worker", 1), ("worker_depth_2", 2)):
        console.print(
            f"… {rates[kind]:,.0f} rows/s through a worker of depth {depth}: {part['over_bare'][kind]:.3f} x "
            f"(A/A noise {noise[kind]:.1%})"
        )


def _print_beside(console: Console, part: dict[str, Any]) -> None:
    table = _table(
        f"{part['policy']}, inline, beside a policy of {part['busy_run_ms']:g} ms in a worker: round trip, µs"
    )
    for kind in ("alone", "beside"):
        figures = part[f"{kind}_us"]
        table.add_row(kind, f"{figures['n']:,}", *latency_cells(figures, figures["n"]))
    table.add_row("A/A noise", "", *(f"{part['noise'][name]:.1%}" for name in QUANTILES))
    table.add_row("beside / alone", "", *(f"{part['beside_over_alone'][name]:.2f} x" for name in QUANTILES))
    print_table(console, table)


def _print_kills(console: Console, part: dict[str, Any]) -> None:
    firsts = ", ".join("never" if taken is None else f"{taken:,.0f}" for taken in part["first_action_ms"])
    console.print(
        f"worker killed under {part['clients']} clients: first action after {firsts} ms; "
        f"refused: {_codes(part['refused'])}"
    )
    before, away = part["other_before_us"], part["other_while_away_us"]
    console.print(
        f"{part['other_policy']}, inline: {part['other_acts']:,} acts, refused: {_codes(part['other_refused'])}; "
        f"p99 {before['p99']:,.0f} µs before, {away['p99']:,.0f} µs while the worker was away"
    )


def _print_slots(console: Console, part: dict[str, Any]) -> None:
    for row in part["rows"]:
        console.print(
            f"{row['bytes']:,} bytes in a slot: the daemon's copy takes {row['daemon_copy_us']:,.1f} µs, one copy "
            f"{row['copy_us']:,.1f} µs, the round trip less the engine {row['carrier_us']:,.1f} µs"
        )
    console.print(
        f"the copy of a stack is {part['stack_share_of_image_round_trip']:.1%} of the round trip of "
        f"{part['image_policy']} ({part['image_round_trip_us']['p50']:,.0f} µs)"
    )


def _print_cached(console: Console, part: dict[str, Any]) -> None:
    table = _table(f"a policy of {part['run_ms']:g} ms, one lane client: round trip, µs", "A/A noise")
    for kind, label in (("inline", "inline"), ("cached", "from the result cache")):
        figures = part[f"{kind}_us"]
        cells = latency_cells(figures, figures["n"])
        table.add_row(label, f"{figures['n']:,}", *cells, f"{part['noise'][kind]:.1%}")
    print_table(console, table)
    console.print(
        f"from the result cache: {part['cached_over_inline']:.2f} x inline at p50, of which the engine takes "
        f"{part['engine_us']['p50']:,.0f} µs; "
        f"{part['hits']:,} of {part['cached_us']['n']:,} acts were found"
    )


def _print_interpreter(console: Console, part: dict[str, Any]) -> None:
    console.print(
        f"{part['policy']}, a worker in another interpreter: {part['foreign_us']['p50']:,.1f} µs at p50, "
        f"{part['foreign_over_own']:.3f} x one in the daemon's own (A/A noise {part['noise']['foreign']:.1%})"
    )


def _print_start(console: Console, part: dict[str, Any]) -> None:
    by_hand = part["by_hand_s"]
    console.print(
        f"a model of {part['model_bytes'] / 1e6:,.0f} MB by hand: {by_hand['process']:.2f} s, of which import "
        f"{by_hand['import']:.2f}, read {by_hand['read']:.2f}, hash {by_hand['hash']:.2f}, load {by_hand['load']:.2f}"
    )
    for kind, label in (("start", "with the start of a daemon"), ("switch", "with a switch of a daemon that runs")):
        console.print(
            f"… from publish until it serves, {label}: {part[f'{kind}_s']:.2f} s, {part['over_by_hand'][kind]:.2f} x "
            f"(between runs {part['noise'][kind]:.1%}); {part['over_read_hash_load'][kind]:.2f} x read, hash and load"
        )
    cpu_s = part["cpu_s"]
    console.print(f"… processor time: {cpu_s['start']:.2f} s for publish and start, {cpu_s['by_hand']:.2f} s by hand")


def _print_memory(console: Console, part: dict[str, Any]) -> None:
    console.print(
        f"the serving process has {part['serving_mb']['worker']:,.1f} MB resident, {part['added_mb']:+.1f} MB over that "
        f"beside a worker of ONNX (A/A noise {max(part['noise_mb'].values()):.1f} MB); "
        f"the worker has {part['worker_mb']:,.1f} MB"
    )


def _table(title: str, *more: str) -> Table:
    table = Table(title=title, **TABLE_STYLE)
    for name in ("", "n", *QUANTILES, *more):
        table.add_column(name, justify="right" if name else "left")
    return table


def _codes(refused: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {code}" for code, count in refused.items()) or "none"
