"""The options that several commands of `pillion bench` share, and the values that they accept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from pillion import cli_support

DEFAULT_POLICY: Final = "lunar-lander"
"""The policy to serve if none is named: the smallest one that ships."""

PATH: Final = click.Path(path_type=Path)
SECONDS: Final = click.FloatRange(min=0.01)
POSITIVE: Final = click.IntRange(min=1)


def store_folder(_context: click.Context, _parameter: click.Parameter, value: Path | None) -> Path:
    """Returns the store that was named, else the one that ships."""
    from pillion_bench.shipped import examples_folder

    return value or examples_folder()


def speed_factor(_context: click.Context, _parameter: click.Parameter, value: str) -> float:
    """Returns a factor of the recorded pace; 0 for `max`, as fast as possible."""
    try:
        factor = 0.0 if value == "max" else float(value)
    except ValueError:
        factor = -1.0
    if not 0.0 <= factor < float("inf"):
        raise click.BadParameter(f"expected a factor such as 2, or max; got {value!r}")
    return factor


def names(_context: click.Context, _parameter: click.Parameter, value: str) -> list[str]:
    """Returns the words between commas."""
    return [name.strip() for name in value.split(",") if name.strip()]


def counts(_context: click.Context, _parameter: click.Parameter, value: str) -> list[int]:
    """Returns the positive numbers between commas, each once."""
    parts = value.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise click.BadParameter(f"expected numbers from 1 on such as 1,8,64; got {value!r}")
    return list(dict.fromkeys(int(part) for part in parts))


address_option = click.option(
    "--address", metavar="URL", default="", help="Address of a running daemon; default: start one."
)
store_option = click.option(
    "--store", metavar="DIR", type=PATH, callback=store_folder, help="Store folder; default: the policies that ship."
)
policy_option = click.option("--policy", metavar="NAME[@VERSION]", default="", help="Policy to serve.")
pin_option = click.option(
    "--pin",
    metavar="CPUS",
    default="",
    help="CPUs: two-cores (default), one-core, none, or SERVER:CLIENT such as 0:1.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
carrier_option = click.option(
    "--carrier",
    type=click.Choice(["zmq", "lane"]),
    default="zmq",
    show_default=True,
    help="Carrier of a daemon that this command starts; --address names its own.",
)
plot_option = click.option(
    "--plot", "plots", metavar="FILE", multiple=True, type=PATH, help="Also draw a plot, .png or .svg. May be repeated."
)


def show(report: dict[str, Any], as_json: bool, print_tables: Callable[[dict[str, Any]], None]) -> None:
    """Prints a report on standard output, as JSON or as tables."""
    if as_json:
        cli_support.print_json(report)
    else:
        print_tables(report)
