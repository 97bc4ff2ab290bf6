"""The group `pillion bench`. Its commands import what they need when they run."""

from __future__ import annotations

import os
import signal
import sys

import click

from pillion.cli_support import Failure, PillionGroup, missing_package
from pillion_bench.cli.comparison import compare, table
from pillion_bench.cli.engines import budget, engine
from pillion_bench.cli.experiments import disturb, frames, idle, switch
from pillion_bench.cli.latency import demo, floor, load, replay
from pillion_bench.cli.recording import record


def explain(error: Exception) -> Failure | None:
    """Returns the failure that `error` means; None if it is a bug."""
    if missing := missing_package(error, {"matplotlib": "plot", "torch": "torch"}, "bench"):
        return missing
    from pillion import InvalidObservationError, PillionError
    from pillion_bench.errors import BenchError

    if isinstance(error, BenchError):
        return Failure(str(error), error.exit_code)
    if isinstance(error, PillionError):
        is_data = isinstance(error, InvalidObservationError)
        return Failure(str(error), os.EX_DATAERR if is_data else os.EX_UNAVAILABLE)
    from pillion_artifacts.errors import ArtifactError

    return Failure(str(error), os.EX_DATAERR) if isinstance(error, ArtifactError) else None


@click.group(cls=PillionGroup, explain=explain)
def bench() -> None:
    """Measure a daemon, and record episodes."""
    # A daemon that a bench started must end with it, also when the bench gets SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


for command in (load, replay, floor, record, compare, table, disturb, idle, frames, switch, engine, budget, demo):
    bench.add_command(command)
