"""`pillion bench load`, `replay`, `floor` and `demo`: latency under a load."""

from __future__ import annotations

from pathlib import Path

import click

from pillion.cli_support import examples
from pillion_bench.cli.options import (
    DEFAULT_POLICY,
    PATH,
    POSITIVE,
    SECONDS,
    address_option,
    carrier_option,
    json_option,
    pin_option,
    policy_option,
    show,
    speed_factor,
    store_option,
)


@click.command(
    epilog=examples(
        "pillion bench load --sessions 16 --processes 4 --carrier lane",
        "pillion bench load --address lane:///run/pillion/lane.sock --seconds 10",
    )
)
@click.option(
    "--sessions", metavar="N", type=POSITIVE, default=1, show_default=True, help="Sessions in all processes together."
)
@click.option("--rows", metavar="N", type=POSITIVE, default=1, show_default=True, help="Rows in each act.")
@click.option(
    "--processes", metavar="N", type=POSITIVE, default=1, show_default=True, help="Processes that drive the sessions."
)
@click.option(
    "--connections", metavar="N", type=POSITIVE, default=1, show_default=True, help="Connections of each process."
)
@click.option("--seconds", metavar="SECONDS", type=SECONDS, default=5.0, show_default=True, help="Time to measure.")
@click.option(
    "--warmup",
    metavar="SECONDS",
    type=click.FloatRange(min=0.0),
    default=1.0,
    show_default=True,
    help="Time to run before measuring.",
)
@click.option(
    "--floor-seconds",
    metavar="SECONDS",
    type=SECONDS,
    default=1.0,
    show_default=True,
    help="Time for each floor, before and after.",
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
    """Measure latency in a closed loop.

    Every session sends its next act as soon as the last one is answered.
    """
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


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=PATH)
@click.option(
    "--speed",
    metavar="FACTOR",
    default="1",
    show_default=True,
    callback=speed_factor,
    help="Factor of the recorded pace; 0 or max: as fast as possible.",
)
@click.option(
    "--sessions",
    metavar="N",
    type=POSITIVE,
    default=1,
    show_default=True,
    help="Sessions that replay it, each starting a little after the other.",
)
@click.option(
    "--any-version", is_flag=True, help="Replay even if the daemon serves another artifact than was recorded."
)
@click.option(
    "--floor-seconds",
    metavar="SECONDS",
    type=click.FloatRange(min=0.0),
    default=0.5,
    show_default=True,
    help="Time for each floor, before and after; 0: no floors.",
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
    """Replay recorded episodes and check every action.

    An open loop: acts are sent at their recorded pace, whether or not the last one was answered. The exit code is 1 if an
    action differs from the recorded one.
    """
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


@click.command()
@click.option("--rows", metavar="N", type=POSITIVE, default=1, show_default=True, help="Rows in each act.")
@click.option("--seconds", metavar="SECONDS", type=SECONDS, default=2.0, show_default=True, help="Time for each floor.")
@pin_option
@policy_option
@store_option
@json_option
def floor(rows: int, seconds: float, pin: str, policy: str, store: Path, as_json: bool) -> None:
    """Measure what no server on this host can beat.

    The floors are raw pyzmq, a raw Unix socket, and the engine alone.
    """
    from pillion_bench.measurements.floor import measure_floor
    from pillion_bench.process.placement import parse_placement
    from pillion_bench.tables import print_floor

    report = measure_floor(store, policy or DEFAULT_POLICY, rows, seconds, parse_placement(pin))
    show(report, as_json, print_floor)


@click.command()
@pin_option
def demo(pin: str) -> None:
    """Replay every recording that ships.

    It replays each one against its policy, and prints one table of latencies.
    """
    from pillion_bench.measurements.demo import run_demo
    from pillion_bench.process.placement import parse_placement

    run_demo(parse_placement(pin))
