"""`make demo`: replays every shipped recording against the policy that made it, and prints one table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pillion_bench.errors import ActionMismatchError, RecordingError
from pillion_bench.host import describe_host
from pillion_bench.limits import DEMO_REPLAY_S_MAX
from pillion_bench.measurements.replay import Replayed, ReplayOptions, replay_file
from pillion_bench.percentiles import QUANTILES, percentiles_us
from pillion_bench.process.daemon_process import DaemonProcess
from pillion_bench.process.placement import Placement
from pillion_bench.process.target import Target
from pillion_bench.recordings.recording import Recording
from pillion_bench.shipped import examples_folder, recorded_policies, recordings
from pillion_bench.tables import TABLE_STYLE, describe, latency_cells, make_console, print_table


def run_demo(placement: Placement) -> None:
    """Prints its progress and the table; raises `ActionMismatchError` if an action is not the recorded one."""
    console = make_console()
    policies = recorded_policies()
    if not policies:
        raise RecordingError("no recordings ship with this installation")
    replays = [replayed for policy in policies for replayed in _replay_all(policy, placement, console)]
    print_table(console, _table(replays))
    console.print(f"placement: {placement}; {describe(describe_host())}", style="dim")
    for replayed in replays:
        if replayed.mismatches:
            raise ActionMismatchError(f"{_name(replayed)}: {replayed.first_mismatch}")
    acts = sum(len(replayed.latency_ns) for replayed in replays)
    console.print(f"All {acts:,} actions are equal to the recorded ones.", style="bold green")


def pace_of(duration_s: float) -> float:
    """Returns the speed of a replay: 1 (the recorded pace), or more if it would exceed `DEMO_REPLAY_S_MAX`."""
    return max(1.0, duration_s / DEMO_REPLAY_S_MAX)


def _replay_all(policy: str, placement: Placement, console: Console) -> Iterator[Replayed]:
    with DaemonProcess(examples_folder(), policy, placement.server) as daemon:
        console.print(f"[bold]{policy}[/bold]: the daemon is ready after {daemon.ready_s:.2f} s")
        target = Target(daemon.address, policy, "", placement, daemon)
        for path in recordings(policy):
            speed = pace_of(Recording.load(path).duration_s)
            replayed = replay_file(path, target, ReplayOptions(speed=speed))
            verdict = "every action as recorded" if not replayed.mismatches else f"{replayed.mismatches} mismatches"
            console.print(
                f"  {path.stem}: {replayed.steps} steps of {replayed.episodes} episodes over ZeroMQ "
                f"in {replayed.duration_s:.1f} s, {speed:.2g} x the recorded pace: {verdict}"
            )
            yield replayed


def _table(replays: list[Replayed]) -> Table:
    table = Table(title="added latency (from an act's due time to its answer, less the engine), µs", **TABLE_STYLE)
    table.add_column("recording")
    for name in ("n", "mismatches", *QUANTILES, "engine p50"):
        table.add_column(name, justify="right")
    for replayed in replays:
        count = len(replayed.latency_ns)
        table.add_row(
            _name(replayed),
            f"{count:,}",
            str(replayed.mismatches),
            *latency_cells(percentiles_us(replayed.added_ns), count),
            f"{percentiles_us(replayed.engine_ns)['p50']:,.1f}",
        )
    return table


def _name(replayed: Replayed) -> str:
    return f"{replayed.opened.policy} {Path(replayed.file).stem}"
