"""`pillion bench`: the commands. What they need is imported when they run."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

import click

DEFAULT_POLICY: Final = "lunar-lander"
"""What is served where nobody says otherwise: the smallest policy that ships."""

_NEEDS: Final = "the bench's packages are not installed"


class BenchGroup(click.Group):
    """Turns what is known to go wrong into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        # A daemon that a bench started ends with it, also where it is told to stop.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            failure = known_failure(error)
            if failure is None:
                raise
            raise failure from None


class Failure(click.ClickException):
    """What the `pillion` command prints as one line, and the code that it exits with."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it on the class and reads it from the instance


def known_failure(error: Exception) -> Failure | None:
    """The failure that `error` means; None where it is a bug. Imports what it compares with: `--help` never comes here."""
    from pillion import InvalidObservationError, PillionError
    from pillion_bench.errors import BenchError

    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("pillion"):
        extra = "plot" if (error.name or "").startswith("matplotlib") else "bench"
        return Failure(f"{_NEEDS} ({error.name}): pip install 'pillion[{extra}]'", os.EX_UNAVAILABLE)
    if isinstance(error, BenchError):
        return Failure(str(error), error.exit_code)
    if isinstance(error, PillionError):
        is_data = isinstance(error, InvalidObservationError)
        return Failure(str(error), os.EX_DATAERR if is_data else os.EX_UNAVAILABLE)
    from pillion_artifacts.errors import ArtifactError

    return Failure(str(error), os.EX_DATAERR) if isinstance(error, ArtifactError) else None


def store_folder(_context: click.Context, _parameter: click.Parameter, given: Path | None) -> Path:
    """The store that was named, else the policies that ship."""
    from pillion_bench.shipped import examples_folder

    return given or examples_folder()


def speed_factor(_context: click.Context, _parameter: click.Parameter, given: str) -> float:
    """`max` and 0 mean as fast as it goes."""
    try:
        factor = 0.0 if given == "max" else float(given)
    except ValueError:
        factor = -1.0
    if not 0.0 <= factor < float("inf"):
        raise click.BadParameter(f"expected a factor such as 2, or max; got {given!r}")
    return factor


def names(_context: click.Context, _parameter: click.Parameter, given: str) -> list[str]:
    """What stands between commas."""
    return [name.strip() for name in given.split(",") if name.strip()]


def counts(_context: click.Context, _parameter: click.Parameter, given: str) -> list[int]:
    """Numbers from 1 on, between commas; each once."""
    found = given.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in found):
        raise click.BadParameter(f"expected numbers from 1 on such as 1,8,64; got {given!r}")
    return list(dict.fromkeys(int(part) for part in found))


address_option = click.option("--address", metavar="URL", default="", help="A running daemon; else one is started.")
store_option = click.option(
    "--store",
    metavar="DIR",
    type=click.Path(path_type=Path),
    callback=store_folder,
    help="Policies; else those that ship.",
)
policy_option = click.option("--policy", metavar="NAME[@VERSION]", default="", help="The policy to be served.")
pin_option = click.option(
    "--pin", metavar="WHERE", default="", help="two-cores (default), one-core, none, or SERVER:CLIENT cpus such as 0:1."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
carrier_option = click.option(
    "--carrier",
    type=click.Choice(["zmq", "lane"]),
    default="zmq",
    show_default=True,
    help="Of a daemon that is started; an address names its own.",
)
positive = click.IntRange(min=1)


@click.group(cls=BenchGroup)
def bench() -> None:
    """Measures a daemon: load, replay, floors, peers; and records episodes."""


@bench.command(short_help="Closed loop: as fast as sessions are answered.")
@click.option("--sessions", type=positive, default=1, show_default=True, help="Sessions, of all processes together.")
@click.option("--rows", type=positive, default=1, show_default=True, help="Rows of each act.")
@click.option("--processes", type=positive, default=1, show_default=True, help="Processes that drive the sessions.")
@click.option("--connections", type=positive, default=1, show_default=True, help="Connections of each process.")
@click.option("--seconds", type=click.FloatRange(min=0.01), default=5.0, show_default=True, help="Time that counts.")
@click.option("--warmup", type=click.FloatRange(min=0.0), default=1.0, show_default=True, help="Seconds before it.")
@click.option(
    "--floor-seconds",
    type=click.FloatRange(min=0.01),
    default=1.0,
    show_default=True,
    help="Per floor, before and after.",
)
@carrier_option
@pin_option
@policy_option
@address_option
@store_option
@json_option
def load(
    sessions: int,
    rows: int,
    processes: int,
    connections: int,
    seconds: float,
    warmup: float,
    floor_seconds: float,
    carrier: str,
    pin: str,
    policy: str,
    address: str,
    store: Path,
    as_json: bool,
) -> None:
    """Closed loop: every session sends its next act as soon as the last one is answered."""
    from pillion_bench.measurements.load import LoadOptions, measure_load
    from pillion_bench.process.placement import parse_placement
    from pillion_bench.process.target import open_target
    from pillion_bench.tables import print_load

    options = LoadOptions(sessions, rows, processes, connections, seconds, warmup, floor_seconds)
    placement = parse_placement(pin)
    reference = policy if address else policy or DEFAULT_POLICY
    with open_target(address, store, reference, placement, carrier) as target:
        report = measure_load(target, options)
    show(report, as_json, print_load)


@bench.command(short_help="Open loop: recorded episodes, every action checked.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--speed",
    metavar="FACTOR",
    default="1",
    show_default=True,
    callback=speed_factor,
    help="Of the recorded pace; 0 or max: as fast as it goes.",
)
@click.option(
    "--sessions",
    type=positive,
    default=1,
    show_default=True,
    help="Sessions that replay it, each a little after the other.",
)
@click.option("--any-version", is_flag=True, help="Replay also where another artifact is served than was recorded.")
@click.option(
    "--floor-seconds",
    type=click.FloatRange(min=0.0),
    default=0.5,
    show_default=True,
    help="Per floor, before and after; 0: no floor.",
)
@carrier_option
@pin_option
@address_option
@store_option
@json_option
def replay(
    files: tuple[Path, ...],
    speed: float,
    sessions: int,
    any_version: bool,
    floor_seconds: float,
    carrier: str,
    pin: str,
    address: str,
    store: Path,
    as_json: bool,
) -> None:
    """Open loop: recorded episodes at their recorded pace, every action checked against the recorded one."""
    from pillion_bench.measurements.replay import ReplayOptions, check_actions, measure_replay, recorded_policy
    from pillion_bench.process.placement import parse_placement
    from pillion_bench.process.target import open_target
    from pillion_bench.tables import print_replay

    options = ReplayOptions(sessions, speed, any_version, floor_seconds)
    reference = recorded_policy(list(files))
    with open_target(address, store, reference, parse_placement(pin), carrier) as target:
        report = measure_replay(list(files), target, options)
    show(report, as_json, print_replay)
    check_actions(report)


@bench.command(short_help="What no server on this host can beat.")
@click.option("--rows", type=positive, default=1, show_default=True, help="Rows of each act.")
@click.option("--seconds", type=click.FloatRange(min=0.01), default=2.0, show_default=True, help="Per floor.")
@pin_option
@policy_option
@store_option
@json_option
def floor(rows: int, seconds: float, pin: str, policy: str, store: Path, as_json: bool) -> None:
    """What no server on this host can beat: raw pyzmq, a raw Unix socket, and the engine alone."""
    from pillion_bench.measurements.floor import measure_floor
    from pillion_bench.process.placement import parse_placement
    from pillion_bench.tables import print_floor

    report = measure_floor(store, policy or DEFAULT_POLICY, rows, seconds, parse_placement(pin))
    show(report, as_json, print_floor)


@bench.command(short_help="Play an environment and keep what came.")
@click.argument("environment", metavar="ENV")
@click.option("--episodes", type=positive, default=1, show_default=True)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the first episode; the next ones count on.",
)
@click.option(
    "--steps-max", type=click.IntRange(min=0), default=0, help="Cut an episode after so many steps; 0: never."
)
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path), help="Else POLICY-seed-SEED.safetensors.")
@policy_option
@address_option
@store_option
@json_option
def record(
    environment: str,
    episodes: int,
    seed: int,
    steps_max: int,
    out: Path | None,
    policy: str,
    address: str,
    store: Path,
    as_json: bool,
) -> None:
    """Plays a Gymnasium environment (ID or MODULE:ID) through a daemon and keeps what came."""
    from pillion_bench.recordings.record import RecordOptions
    from pillion_bench.recordings.recording_session import record_to_file
    from pillion_bench.tables import print_record

    options = RecordOptions(episodes, seed, steps_max)
    show(record_to_file(environment, out, address, store, policy, options), as_json, print_record)


@bench.command(short_help="Pillion beside its floors and its peers.")
@click.option(
    "--contestants",
    metavar="NAME,…",
    default="",
    callback=names,
    help="Of floor, lane, lane-spin, zmq, zmq-spin, openpi, req-rep, mosec, litserve; else all that are there.",
)
@click.option(
    "--clients", metavar="N,…", default="1,8,64", show_default=True, callback=counts, help="Processes of one row each."
)
@click.option(
    "--policies", metavar="NAME,…", default="lunar-lander,cart-pole-pixels", show_default=True, callback=names
)
@click.option("--seconds", type=click.FloatRange(min=0.01), default=2.0, show_default=True, help="Each, that count.")
@click.option("--warmup", type=click.FloatRange(min=0.0), default=0.5, show_default=True, help="Seconds before them.")
@click.option("--repeat", type=positive, default=1, show_default=True, help="Rounds of everybody in turn.")
@click.option("--plot", "plots", metavar="FILE.png|svg", multiple=True, type=click.Path(path_type=Path))
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
    """Pillion beside its floors and the peers that `make peers` sets up: the same policies, observations, placement."""
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


@bench.command(short_help="A kept comparison as Markdown, or as a plot.")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--write", metavar="README", type=click.Path(path_type=Path), help="Put it between this file's markers instead."
)
@click.option("--plot", "plots", metavar="FILE.png|svg", multiple=True, type=click.Path(path_type=Path))
def table(file: Path, write: Path | None, plots: tuple[Path, ...]) -> None:
    """The report of `compare --json` in FILE as the README's Markdown table."""
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


@bench.command(short_help="Whether operators disturb the data path.")
@click.option("--sessions", type=positive, default=4, show_default=True, help="That replay at once.")
@click.option("--speed", type=click.FloatRange(min=0.01), default=0.25, show_default=True, help="Of the recorded pace.")
@click.option("--rounds", type=positive, default=6, show_default=True, help="Of quiet, disturbed, disturbed, quiet.")
@click.option("--per-second", type=positive, default=10, show_default=True, help="Scrapes, and as many health checks.")
@click.option(
    "--carrier", type=click.Choice(["zmq", "lane"]), default="lane", show_default=True, help="Of the daemons."
)
@pin_option
@json_option
def disturb(sessions: int, speed: float, rounds: int, per_second: int, carrier: str, pin: str, as_json: bool) -> None:
    """Scrapes, health checks and a log at debug level, against a quiet daemon under the same open load."""
    from pillion_bench.measurements.disturb import DisturbOptions, measure_disturb
    from pillion_bench.measurements.disturb_tables import print_disturb
    from pillion_bench.process.placement import parse_placement
    from pillion_bench.progress import progress_bar

    options = DisturbOptions(sessions, speed, rounds, per_second, carrier)
    with progress_bar(options.segments) as advance:
        report = measure_disturb(parse_placement(pin), options, advance)
    show(report, as_json, print_disturb)


@bench.command(short_help="What silent sessions, and an idle daemon, cost.")
@click.option("--sessions", type=positive, default=1000, show_default=True, help="That are connected and silent.")
@click.option("--seconds", type=click.FloatRange(min=0.01), default=2.0, show_default=True, help="Of a segment.")
@click.option("--rounds", type=positive, default=4, show_default=True, help="Of alone, crowded, crowded, alone.")
@carrier_option
@pin_option
@json_option
def idle(sessions: int, seconds: float, rounds: int, carrier: str, pin: str, as_json: bool) -> None:
    """An active session with and without silent ones beside it, and the processor time of a daemon that nobody asks."""
    from pillion_bench.measurements.idle import IdleOptions, measure_idle
    from pillion_bench.measurements.idle_tables import print_idle
    from pillion_bench.process.placement import parse_placement
    from pillion_bench.progress import progress_bar

    options = IdleOptions(sessions, seconds, rounds, carrier)
    with progress_bar(options.measurements) as advance:
        report = measure_idle(parse_placement(pin), options, advance)
    show(report, as_json, print_idle)


@bench.command(short_help="What carrying an observation costs, by its size.")
@click.option(
    "--sizes",
    metavar="BYTES,…",
    default="1024,16384,28224,65536,160000,1400000",
    show_default=True,
    callback=counts,
    help="Of an observation.",
)
@click.option("--seconds", type=click.FloatRange(min=0.01), default=1.0, show_default=True, help="Of each, a round.")
@click.option("--repeat", type=positive, default=3, show_default=True, help="Rounds.")
@pin_option
@json_option
def frames(sizes: list[int], seconds: float, repeat: int, pin: str, as_json: bool) -> None:
    """Observations of every size over the lane, in a packet and in a slot, beside one copy and the ping-pong."""
    from pillion_bench.measurements.frame_tables import print_frames
    from pillion_bench.measurements.frames import FrameOptions, measure_frames
    from pillion_bench.process.placement import parse_placement
    from pillion_bench.progress import progress_bar

    options = FrameOptions(sizes, seconds, repeat)
    with progress_bar(options.measurements) as advance:
        report = measure_frames(parse_placement(pin), options, advance)
    show(report, as_json, print_frames)


@bench.command("switch", short_help="Switch versions under full load.")
@click.option("--sessions", type=positive, default=16, show_default=True, help="Lane clients, each one row.")
@click.option("--switches", type=positive, default=100, show_default=True, help="Back and forth between two versions.")
@click.option("--before", type=click.FloatRange(min=0.5), default=5.0, show_default=True, help="Seconds without any.")
@click.option("--restage", is_flag=True, help="Three versions in turn: each is staged for each switch.")
@pin_option
@json_option
def switch_command(sessions: int, switches: int, before: float, restage: bool, pin: str, as_json: bool) -> None:
    """Two versions, one hundred switches, every answer compared with the version that it names, bit for bit."""
    from pillion_bench.measurements.switch import SwitchOptions, measure_switch
    from pillion_bench.measurements.switch_tables import print_switch
    from pillion_bench.process.placement import parse_placement
    from pillion_bench.progress import progress_bar

    options = SwitchOptions(sessions, switches, before_s=before, restage=restage)
    with progress_bar(options.switches) as advance:
        report = measure_switch(parse_placement(pin), options, advance)
    show(report, as_json, print_switch)


@bench.command(short_help="Replay every recording that ships.")
@pin_option
def demo(pin: str) -> None:
    """Replays the recordings that ship, each against its policy, and prints one table of latencies."""
    from pillion_bench.measurements.demo import run_demo
    from pillion_bench.process.placement import parse_placement

    run_demo(parse_placement(pin))


def show(report: dict[str, Any], as_json: bool, print_table: Any) -> None:
    """Prints a report as JSON or as a table, on standard output."""
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        print_table(report)
