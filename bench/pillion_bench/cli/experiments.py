"""`pillion bench disturb`, `idle`, `frames` and `switch`: what one thing costs, measured against runs without it."""

from __future__ import annotations

import click

from pillion_bench.cli.options import POSITIVE, SECONDS, carrier_option, counts, json_option, pin_option, show


@click.command()
@click.option(
    "--sessions", metavar="N", type=POSITIVE, default=4, show_default=True, help="Sessions that replay at once."
)
@click.option(
    "--speed",
    metavar="FACTOR",
    type=click.FloatRange(min=0.01),
    default=0.25,
    show_default=True,
    help="Factor of the recorded pace.",
)
@click.option(
    "--rounds",
    metavar="N",
    type=POSITIVE,
    default=6,
    show_default=True,
    help="Rounds of quiet, disturbed, disturbed, quiet.",
)
@click.option(
    "--per-second",
    metavar="N",
    type=POSITIVE,
    default=10,
    show_default=True,
    help="Scrapes per second, and as many health checks.",
)
@click.option(
    "--carrier",
    type=click.Choice(["zmq", "lane"]),
    default="lane",
    show_default=True,
    help="Carrier of the daemons.",
)
@pin_option
@json_option
def disturb(sessions: int, speed: float, rounds: int, per_second: int, carrier: str, pin: str, as_json: bool) -> None:
    """Measure how much monitoring disturbs the data path.

    It compares a daemon that is scraped, health-checked and logs at debug level with a quiet one, under the same open
    load.
    """
    from pillion_bench.measurements.disturb import DisturbOptions, measure_disturb
    from pillion_bench.measurements.disturb_tables import print_disturb
    from pillion_bench.process.placement import parse_placement
    from pillion_bench.progress import progress_bar

    options = DisturbOptions(sessions, speed, rounds, per_second, carrier)
    with progress_bar(options.segments) as advance:
        report = measure_disturb(parse_placement(pin), options, advance)
    show(report, as_json, print_disturb)


@click.command()
@click.option(
    "--sessions", metavar="N", type=POSITIVE, default=1000, show_default=True, help="Sessions that are open and silent."
)
@click.option(
    "--seconds", metavar="SECONDS", type=SECONDS, default=2.0, show_default=True, help="Time of each segment."
)
@click.option(
    "--rounds",
    metavar="N",
    type=POSITIVE,
    default=4,
    show_default=True,
    help="Rounds of alone, crowded, crowded, alone.",
)
@carrier_option
@pin_option
@json_option
def idle(sessions: int, seconds: float, rounds: int, carrier: str, pin: str, as_json: bool) -> None:
    """Measure what silent sessions and an idle daemon cost.

    It measures one active session with and without silent ones beside it, and the CPU time of a daemon without requests.
    """
    from pillion_bench.measurements.idle import IdleOptions, measure_idle
    from pillion_bench.measurements.idle_tables import print_idle
    from pillion_bench.process.placement import parse_placement
    from pillion_bench.progress import progress_bar

    options = IdleOptions(sessions, seconds, rounds, carrier)
    with progress_bar(options.measurements) as advance:
        report = measure_idle(parse_placement(pin), options, advance)
    show(report, as_json, print_idle)


@click.command()
@click.option(
    "--sizes",
    metavar="BYTES,…",
    default="1024,16384,28224,65536,160000,1400000",
    show_default=True,
    callback=counts,
    help="Sizes of an observation in bytes.",
)
@click.option(
    "--seconds", metavar="SECONDS", type=SECONDS, default=1.0, show_default=True, help="Time of each measurement."
)
@click.option("--repeat", metavar="N", type=POSITIVE, default=3, show_default=True, help="Rounds.")
@pin_option
@json_option
def frames(sizes: list[int], seconds: float, repeat: int, pin: str, as_json: bool) -> None:
    """Measure latency by the size of an observation.

    It sends observations over the lane, in a packet and in a slot, beside one copy of the bytes and a bare ping-pong.
    """
    from pillion_bench.measurements.frame_tables import print_frames
    from pillion_bench.measurements.frames import FrameOptions, measure_frames
    from pillion_bench.process.placement import parse_placement
    from pillion_bench.progress import progress_bar

    options = FrameOptions(sizes, seconds, repeat)
    with progress_bar(options.measurements) as advance:
        report = measure_frames(parse_placement(pin), options, advance)
    show(report, as_json, print_frames)


@click.command()
@click.option(
    "--sessions", metavar="N", type=POSITIVE, default=16, show_default=True, help="Lane clients, of one row each."
)
@click.option(
    "--switches", metavar="N", type=POSITIVE, default=100, show_default=True, help="Switches between two versions."
)
@click.option(
    "--before",
    metavar="SECONDS",
    type=click.FloatRange(min=0.5),
    default=5.0,
    show_default=True,
    help="Time to measure before the first switch.",
)
@click.option("--restage", is_flag=True, help="Rotate through three versions, so that every switch stages one anew.")
@pin_option
@json_option
def switch(sessions: int, switches: int, before: float, restage: bool, pin: str, as_json: bool) -> None:
    """Switch versions under load and check every answer.

    It compares each answer bit for bit with the version that the answer names.
    """
    from pillion_bench.measurements.switch import SwitchOptions, measure_switch
    from pillion_bench.measurements.switch_tables import print_switch
    from pillion_bench.process.placement import parse_placement
    from pillion_bench.progress import progress_bar

    options = SwitchOptions(sessions, switches, before_s=before, restage=restage)
    with progress_bar(options.switches) as advance:
        report = measure_switch(parse_placement(pin), options, advance)
    show(report, as_json, print_switch)
