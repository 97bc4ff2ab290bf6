"""`pillion bench compare` and `table`: Pillion beside other servers."""

from __future__ import annotations

from pathlib import Path

import click

from pillion.cli_support import examples
from pillion_bench.cli.options import (
    PATH,
    POSITIVE,
    SECONDS,
    counts,
    json_option,
    names,
    pin_option,
    plot_option,
    show,
    store_option,
)


@click.command(epilog=examples("pillion bench compare --contestants floor,lane,zmq --clients 1,8 --json > report.json"))
@click.option(
    "--contestants",
    metavar="NAME,…",
    default="",
    callback=names,
    help="Any of floor, lane, lane-spin, zmq, zmq-spin, openpi, req-rep, mosec, litserve; default: all that are installed.",
)
@click.option(
    "--clients",
    metavar="N,…",
    default="1,8,64",
    show_default=True,
    callback=counts,
    help="Client processes, of one row each.",
)
@click.option(
    "--policies",
    metavar="NAME,…",
    default="lunar-lander,cart-pole-pixels",
    show_default=True,
    callback=names,
    help="Policies to serve.",
)
@click.option(
    "--seconds", metavar="SECONDS", type=SECONDS, default=2.0, show_default=True, help="Time of each measurement."
)
@click.option(
    "--warmup",
    metavar="SECONDS",
    type=click.FloatRange(min=0.0),
    default=0.5,
    show_default=True,
    help="Time to run before each measurement.",
)
@click.option(
    "--repeat", metavar="N", type=POSITIVE, default=1, show_default=True, help="Rounds; each measures all contestants."
)
@plot_option
@pin_option
@store_option
@json_option
def compare(
    contestants: list[str],
    clients: list[int],
    policies: list[str],
    seconds: float,
    warmup: float,
    repeat: int,
    plots: tuple[Path, ...],
    pin: str,
    store: Path,
    as_json: bool,
) -> None:
    """Compare Pillion with its floors and other servers.

    All of them get the same policies, observations and CPUs. `make peers` installs the other servers.
    """
    from pillion_bench.compare.compare import CompareOptions, measure_compare
    from pillion_bench.compare.plot import check_plot, draw
    from pillion_bench.compare.report import first_error
    from pillion_bench.compare.systems import choose
    from pillion_bench.compare.tables import print_compare
    from pillion_bench.errors import ComparisonError
    from pillion_bench.process.placement import parse_placement
    from pillion_bench.progress import progress_bar

    for plot in plots:
        check_plot(plot)
    field = choose(contestants)
    for line in field.omissions():
        click.echo(f"pillion: {line}", err=True)
    options = CompareOptions(policies, clients, seconds, warmup, repeat)
    with progress_bar(options.measurements(field)) as advance:
        report = measure_compare(store, field, parse_placement(pin), options, advance)
    show(report, as_json, print_compare)
    for plot in plots:
        draw(report, plot)
    if error := first_error(report):
        raise ComparisonError(error)


@click.command(epilog=examples("pillion bench table report.json --write README.md --plot comparison.svg"))
@click.argument("file", metavar="FILE", type=PATH)
@click.option("--write", metavar="README", type=PATH, help="Write the table between the markers of this file instead.")
@plot_option
def table(file: Path, write: Path | None, plots: tuple[Path, ...]) -> None:
    """Print a saved comparison as Markdown.

    FILE holds the output of `pillion bench compare --json`.
    """
    from pillion_bench.compare.plot import check_plot, draw
    from pillion_bench.compare.tables import load_report, markdown, write_between_markers

    for plot in plots:
        check_plot(plot)
    report = load_report(file)
    if write is None:
        click.echo(markdown(report), nl=False)
    else:
        write_between_markers(write, markdown(report))
    for plot in plots:
        draw(report, plot)
