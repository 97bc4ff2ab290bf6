"""`pillion bench record`."""

from __future__ import annotations

from pathlib import Path

import click

from pillion.cli_support import examples
from pillion_bench.cli.options import PATH, POSITIVE, address_option, json_option, policy_option, show, store_option


@click.command(epilog=examples("pillion bench record LunarLander-v3 --policy lunar-lander --episodes 5 --seed 100"))
@click.argument("environment", metavar="ENV")
@click.option("--episodes", metavar="N", type=POSITIVE, default=1, show_default=True, help="Episodes to play.")
@click.option(
    "--seed",
    metavar="SEED",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the first episode; each next one adds 1.",
)
@click.option(
    "--steps-max", metavar="N", type=click.IntRange(min=0), default=0, help="Cut an episode after N steps; 0: never."
)
@click.option("--out", metavar="FILE", type=PATH, help="Output file; default: POLICY-seed-SEED.safetensors.")
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
    """Play an environment through a daemon and record it.

    ENV is the id of a Gymnasium environment, as ID or MODULE:ID.
    """
    from pillion_bench.recordings.record import RecordOptions
    from pillion_bench.recordings.recording_session import record_to_file
    from pillion_bench.tables import print_record

    options = RecordOptions(episodes, seed, steps_max)
    show(record_to_file(environment, out, address, store, policy, options), as_json, print_record)
