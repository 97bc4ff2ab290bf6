"""Whether operators disturb the data path: quiet and disturbed daemons under the same open load, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec
import numpy as np

from pillion_bench.errors import ActionMismatchError
from pillion_bench.host import describe_host
from pillion_bench.measurements.floor import ANSWER_S_MAX
from pillion_bench.measurements.replay import ReplayOptions, replay_file
from pillion_bench.percentiles import QUANTILES, Nanoseconds, percentiles_us, relative_difference
from pillion_bench.process.daemon_process import DaemonProcess
from pillion_bench.process.placement import CpuSet, Placement, bystander
from pillion_bench.process.target import Target
from pillion_bench.process.worker import Worker
from pillion_bench.recordings.recording import Recording
from pillion_bench.roles.scraper import ScrapeOrder, ScrapePlan, ScrapeResult
from pillion_bench.shipped import examples_folder, recordings

POLICY: Final = "lunar-lander"
DEBUG: Final = {"PILLION_LOG__LEVEL": "debug"}
"""What sets the disturbed daemon apart, beside those who ask it."""

NOISE_MAX: Final = 0.5
"""Above it nothing can be told: anything would be within."""

_ROUND: Final = ("quiet", "disturbed", "disturbed", "quiet too")
"""ABBA: a drift of the machine hits both alike. The quiet segments of a round are of two daemons that are alike."""


class DisturbOptions(msgspec.Struct, frozen=True):
    """How much load, how often it is asked, and how long all of it takes."""

    sessions: int = 4
    speed: float = 0.25
    """Of the recorded pace."""
    rounds: int = 6
    per_second: int = 10
    carrier: str = "lane"

    @property
    def segments(self) -> int:
        """How many replays there are."""
        return self.rounds * len(_ROUND)


class Segment(msgspec.Struct, frozen=True):
    """One replay: from when each act was due to its answer, less the engine, in ns."""

    daemon: str
    added_ns: Nanoseconds
    scraped: ScrapeResult | None


def measure_disturb(placement: Placement, options: DisturbOptions, advance: Callable[[str], None]) -> dict[str, Any]:
    """Runs all rounds, and gives the report. Raises `ActionMismatchError` where an action is not the recorded one."""
    file = recordings(POLICY)[0]
    started = time.monotonic()
    with ExitStack() as stack:
        daemons = {name: stack.enter_context(_open_daemon(name, placement, options)) for name in dict.fromkeys(_ROUND)}
        operator = _open_operator(stack, daemons["disturbed"], placement, options)
        segments = []
        for name in _ROUND * options.rounds:
            advance(name)
            target = Target(daemons[name].address, POLICY, "", placement, daemons[name])
            segments.append(_run_segment(name, file, target, options, operator if name == "disturbed" else None))
        log_lines = daemons["disturbed"].log_lines()
    return report(segments, file, placement, options, log_lines, time.monotonic() - started)


def _open_daemon(name: str, placement: Placement, options: DisturbOptions) -> DaemonProcess:
    settings = DEBUG if name == "disturbed" else {}
    return DaemonProcess(examples_folder(), POLICY, placement.server, options.carrier, settings, has_admin=True)


def _open_operator(stack: ExitStack, daemon: DaemonProcess, placement: Placement, options: DisturbOptions) -> Worker:
    plan = ScrapePlan(daemon.admin_path, options.per_second)
    operator = stack.enter_context(Worker("scrape", plan, bystander(placement)))
    operator.hear(str, ANSWER_S_MAX)
    return operator


def _run_segment(name: str, file: Path, target: Target, options: DisturbOptions, operator: Worker | None) -> Segment:
    with _asking(operator) as answers:
        replayed = replay_file(file, target, ReplayOptions(options.sessions, options.speed, floor_s=0))
    if replayed.mismatches:
        raise ActionMismatchError(f"{name}: {replayed.first_mismatch}")
    return Segment(name, replayed.added_ns, answers[0] if answers else None)


@contextmanager
def _asking(operator: Worker | None) -> Iterator[list[ScrapeResult]]:
    """The operator asks as long as the block lasts; afterwards the list holds what was answered."""
    answers: list[ScrapeResult] = []
    if operator is None:
        yield answers
        return
    operator.tell(ScrapeOrder())
    yield answers
    answers.append(operator.ask("enough", ScrapeResult, ANSWER_S_MAX))


def report(
    segments: list[Segment],
    file: Path,
    placement: Placement,
    options: DisturbOptions,
    log_lines: int,
    seconds: float,
) -> dict[str, Any]:
    """The report of `pillion bench disturb`; `bench/README.md` says what each key means."""
    quiet = np.concatenate([segment.added_ns for segment in segments if segment.daemon != "disturbed"])
    disturbed = np.concatenate([segment.added_ns for segment in segments if segment.daemon == "disturbed"])
    scraped = [segment.scraped for segment in segments if segment.scraped is not None]
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
        "operator_cpus": _numbers(bystander(placement)),
        "host": describe_host(),
    }


def compare_segments(segments: list[Segment]) -> tuple[dict[str, float], dict[str, float]]:
    """For each percentile the A/A noise and the effect, as shares.

    Noise: of each round by how much its two quiet segments differ, of their mean; the largest of all rounds.
    Effect: of each round by how much its disturbed segments lie above its quiet ones; the median of all rounds.
    """
    rounds = [segments[first : first + len(_ROUND)] for first in range(0, len(segments), len(_ROUND))]
    of_rounds = [[percentiles_us(segment.added_ns) for segment in members] for members in rounds]
    noise = {}
    effect = {}
    for name in QUANTILES:
        figures = [[member[name] for member in members] for members in of_rounds]
        noise[name] = round(max(relative_difference(before, after) for before, _, _, after in figures), 4)
        effect[name] = round(median(_above(quiet, loud) for quiet, loud in map(_means, figures)), 4)
    return noise, effect


def verdict(effect: float, noise: float) -> str:
    """`within the noise`, `beyond the noise`, or `undecided` on a machine that differs too much from itself."""
    if noise > NOISE_MAX:
        return "undecided"
    return "within the noise" if effect <= noise else "beyond the noise"


def _means(figures: list[float]) -> tuple[float, float]:
    """Of a round: the quiet segments' mean, the disturbed ones'."""
    first, second, third, fourth = figures
    return (first + fourth) / 2, (second + third) / 2


def _above(quiet: float, disturbed: float) -> float:
    return (disturbed - quiet) / quiet if quiet else 0.0


def _numbers(cpus: CpuSet | None) -> list[int] | None:
    return None if cpus is None else sorted(cpus)
