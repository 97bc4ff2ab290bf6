"""Whether operators disturb the data path: quiet and disturbed daemons under the same open load, interleaved."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from pillion_bench.errors import ActionMismatchError
from pillion_bench.host import describe_host
from pillion_bench.limits import ANSWER_S_MAX, NOISE_MAX
from pillion_bench.measurements.replay import ReplayOptions, replay_file
from pillion_bench.measurements.rounds import Segment, compare_segments
from pillion_bench.percentiles import QUANTILES, percentiles_us
from pillion_bench.process.daemon_process import DaemonProcess
from pillion_bench.process.placement import CpuSet, Placement, spare_cpus
from pillion_bench.process.target import Target
from pillion_bench.process.worker import Worker
from pillion_bench.recordings.recording import Recording
from pillion_bench.roles.scraper import ScrapePlan, ScrapeRequest, ScrapeResult
from pillion_bench.shipped import examples_folder, recordings

POLICY: Final = "lunar-lander"
DEBUG: Final = {"PILLION_LOG__LEVEL": "debug"}
"""The settings of the disturbed daemon, which is also scraped."""

_ROUND: Final = ("quiet", "disturbed", "disturbed", "quiet too")
"""The daemons of a round, in order: three in all, of which two are quiet."""


class DisturbOptions(msgspec.Struct, frozen=True):
    """The load, the rate of scrapes, and the number of rounds."""

    sessions: int = 4
    speed: float = 0.25
    """As a multiple of the recorded pace."""
    rounds: int = 6
    per_second: int = 10
    """Scrapes, and as many health checks."""
    carrier: str = "lane"

    @property
    def segments(self) -> int:
        """The number of replays."""
        return self.rounds * len(_ROUND)


def measure_disturb(placement: Placement, options: DisturbOptions, advance: Callable[[str], None]) -> dict[str, Any]:
    """Runs all rounds; returns the report. Raises `ActionMismatchError` if an action is not the recorded one."""
    file = recordings(POLICY)[0]
    started = time.monotonic()
    with ExitStack() as stack:
        daemons = {name: stack.enter_context(_open_daemon(name, placement, options)) for name in dict.fromkeys(_ROUND)}
        operator = _open_operator(stack, daemons["disturbed"], placement, options)
        segments = []
        scraped: list[ScrapeResult] = []
        for name in _ROUND * options.rounds:
            advance(name)
            target = Target(daemons[name].address, POLICY, "", placement, daemons[name])
            with _scraping(operator, scraped) if name == "disturbed" else nullcontext():
                segments.append(_run_segment(name, file, target, options))
        log_lines = daemons["disturbed"].log_lines()
    return report(segments, scraped, file, placement, options, log_lines, time.monotonic() - started)


def _open_daemon(name: str, placement: Placement, options: DisturbOptions) -> DaemonProcess:
    settings = DEBUG if name == "disturbed" else {}
    return DaemonProcess(examples_folder(), POLICY, placement.server, options.carrier, settings, has_admin=True)


def _open_operator(stack: ExitStack, daemon: DaemonProcess, placement: Placement, options: DisturbOptions) -> Worker:
    plan = ScrapePlan(daemon.admin_path, options.per_second)
    operator = stack.enter_context(Worker("scrape", plan, spare_cpus(placement)))
    operator.receive(str, ANSWER_S_MAX)
    return operator


def _run_segment(name: str, file: Path, target: Target, options: DisturbOptions) -> Segment:
    replayed = replay_file(file, target, ReplayOptions(options.sessions, options.speed, floor_s=0))
    if replayed.mismatches:
        raise ActionMismatchError(f"{name}: {replayed.first_mismatch}")
    return Segment(name, replayed.added_ns)


@contextmanager
def _scraping(operator: Worker, scraped: list[ScrapeResult]) -> Iterator[None]:
    """Scrapes during the block, and appends the result to `scraped`."""
    operator.send(ScrapeRequest())
    yield
    scraped.append(operator.request("stop", ScrapeResult, ANSWER_S_MAX))


def report(
    segments: list[Segment],
    scraped: list[ScrapeResult],
    file: Path,
    placement: Placement,
    options: DisturbOptions,
    log_lines: int,
    seconds: float,
) -> dict[str, Any]:
    """Returns the report of `pillion bench disturb`; `bench/README.md` describes its keys."""
    quiet = np.concatenate([segment.added_ns for segment in segments if segment.daemon != "disturbed"])
    disturbed = np.concatenate([segment.added_ns for segment in segments if segment.daemon == "disturbed"])
    noise, effect = compare_segments(segments)
    recording = Recording.load(file)
    return {
        "n": len(quiet) + len(disturbed),
        "quiet": {"n": len(quiet), "added_us": percentiles_us(quiet)},
        "disturbed": {"n": len(disturbed), "added_us": percentiles_us(disturbed)},
        "noise": noise,
        "effect": effect,
        "verdict": {name: verdict(effect[name], noise[name]) for name in QUANTILES},
        "segments": [
            {"daemon": segment.daemon, "n": len(segment.added_ns), "added_us": percentiles_us(segment.added_ns)}
            for segment in segments
        ],
        "scrapes": sum(result.answers["/metrics"] for result in scraped),
        "health_checks": sum(result.answers["/health"] for result in scraped),
        "refused": sum(result.refused for result in scraped),
        "log_lines": log_lines,
        "rounds": options.rounds,
        "sessions": options.sessions,
        "speed": options.speed,
        "segment_s": round(recording.duration_s / options.speed, 3),
        "acts_per_s": round(recording.steps * options.sessions / (recording.duration_s / options.speed), 1),
        "seconds": round(seconds, 1),
        "carrier": options.carrier,
        "policy": recording.policy,
        "version": recording.version,
        "pin": str(placement),
        "operator_cpus": _sorted(spare_cpus(placement)),
        "host": describe_host(),
    }


def verdict(effect: float, noise: float) -> str:
    """Returns `within the noise`, `beyond the noise`, or `undecided` if the machine is too noisy for a verdict."""
    if noise > NOISE_MAX:
        return "undecided"
    return "within the noise" if effect <= noise else "beyond the noise"


def _sorted(cpus: CpuSet | None) -> list[int] | None:
    return None if cpus is None else sorted(cpus)
