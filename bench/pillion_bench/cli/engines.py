"""`pillion bench engine` and `budget`: what an engine outside the serving loop costs, and what it promises."""

from __future__ import annotations

import click

from pillion_bench.cli.options import POSITIVE, SECONDS, json_option, names, pin_option, show

_MILLISECONDS = click.FloatRange(min=0.0)


@click.command()
@click.option(
    "--seconds", metavar="SECONDS", type=SECONDS, default=1.0, show_default=True, help="Time of each segment."
)
@click.option(
    "--rounds", metavar="N", type=POSITIVE, default=3, show_default=True, help="Rounds, each forwards and backwards."
)
@click.option(
    "--spin-us",
    metavar="US",
    type=click.IntRange(1, 1_000_000),
    default=200,
    show_default=True,
    help="How long both sides poll before they sleep, where they spin.",
)
@click.option(
    "--also",
    metavar="PARTS",
    default="",
    callback=names,
    help="Also measure, between commas: rows, beside, kill, slots, cache, interpreter, start, memory; or all.",
)
@click.option(
    "--engine",
    "kind",
    type=click.Choice(["onnx", "torch", "python"]),
    default="onnx",
    show_default=True,
    help="The engine to measure.",
)
@click.option(
    "--python", metavar="PATH", default="", help="Interpreter of the part interpreter; default: make an environment."
)
@click.option(
    "--model-mb",
    metavar="MB",
    type=click.FloatRange(min=1.0, max=2_000.0),
    default=300.0,
    show_default=True,
    help="Size of the model of the part start.",
)
@pin_option
@json_option
def engine(
    seconds: float,
    rounds: int,
    spin_us: int,
    also: list[str],
    kind: str,
    python: str,
    model_mb: float,
    pin: str,
    as_json: bool,
) -> None:
    """Measure what an engine in a worker adds to an act.

    It compares an inline engine, one in a worker, and one in a worker where both sides spin, with a bare doorbell between two
    processes. The client is on the CPU of the serving process, and the worker on the other one. A bare torch call stands for
    the inline engine where --engine is not onnx.
    """
    from pillion_bench.measurements.engines.engine import EngineOptions, measure_engine, parts_of
    from pillion_bench.measurements.engines.tables import print_engine
    from pillion_bench.process.placement import parse_placement
    from pillion_bench.progress import progress_bar

    known = parts_of(kind)
    parts = known if also == ["all"] else tuple(also)
    if unknown := [part for part in parts if part not in known]:
        raise click.BadParameter(
            f"expected some of {', '.join(known)}, or all; got {unknown[0]!r}", param_hint="--also"
        )
    options = EngineOptions(seconds, rounds, spin_us, also=parts, engine=kind, python=python, model_mb=model_mb)
    with progress_bar(options.segments) as advance:
        report = measure_engine(parse_placement(pin), options, advance)
    show(report, as_json, print_engine)


@click.command()
@click.option("--acts", metavar="N", type=POSITIVE, default=2_000, show_default=True, help="Acts with a budget.")
@click.option(
    "--budget-ms", metavar="MS", type=_MILLISECONDS, default=5.0, show_default=True, help="The budget of each act."
)
@click.option(
    "--pause-ms", metavar="MS", type=_MILLISECONDS, default=4.0, show_default=True, help="Pause after each answer."
)
@click.option(
    "--run-ms",
    metavar="MS",
    type=click.FloatRange(min=0.1, max=200.0),
    default=15.0,
    show_default=True,
    help="How long one run of the policy takes.",
)
@pin_option
@json_option
def budget(acts: int, budget_ms: float, pause_ms: float, run_ms: float, pin: str, as_json: bool) -> None:
    """Measure whether a busy daemon keeps to the budgets.

    Two clients keep a slow policy busy in its worker. A third one sends acts with a budget.
    """
    from pillion_bench.measurements.engines.budget import BudgetOptions, measure_budget
    from pillion_bench.measurements.engines.tables import print_budget
    from pillion_bench.process.placement import parse_placement
    from pillion_bench.progress import progress_bar

    options = BudgetOptions(acts, budget_ms, pause_ms, run_ms)
    with progress_bar(2) as advance:
        report = measure_budget(parse_placement(pin), options, advance)
    show(report, as_json, print_budget)
