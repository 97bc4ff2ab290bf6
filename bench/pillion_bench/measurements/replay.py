"""The open loop: recorded episodes replayed at their recorded pace, with every action checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import pillion
from pillion_bench.errors import ActionMismatchError, RecordingError
from pillion_bench.exchange import exchange_of
from pillion_bench.host import describe_host
from pillion_bench.limits import ANSWER_S_MAX, REPLAY_SLOWDOWN_MAX
from pillion_bench.measurements.floor import BaselineFigures, Baselines
from pillion_bench.percentiles import Nanoseconds, nanoseconds, percentiles_us
from pillion_bench.process.target import Target
from pillion_bench.process.worker import Worker
from pillion_bench.recordings.recording import Recording
from pillion_bench.roles.replay_driver import ReplayOpened, ReplayPlan, ReplayResult
from pillion_protocol import decode_spec


class ReplayOptions(msgspec.Struct, frozen=True):
    """The speed, the number of concurrent sessions, and the checks."""

    sessions: int = 1
    speed: float = 1.0
    """1: the recorded pace; 0: as fast as possible."""
    any_version: bool = False
    """Replay even if the daemon serves another artifact than the recorded one. Its actions may then differ."""
    floor_s: float = 0.5
    """How long each baseline is measured, before and again after; 0: not at all."""


class Replayed(msgspec.Struct, frozen=True):
    """The result of replaying one recording."""

    file: str
    steps: int
    episodes: int
    opened: ReplayOpened
    latency_ns: Nanoseconds
    service_ns: Nanoseconds
    engine_ns: Nanoseconds
    duration_s: float
    mismatches: int
    first_mismatch: str

    @property
    def added_ns(self) -> Nanoseconds:
        """The latency from the due time, less the engine."""
        return self.latency_ns - self.engine_ns

    def summary(self) -> dict[str, Any]:
        """Returns its part of a report."""
        return {
            "file": Path(self.file).name,
            "episodes": self.episodes,
            "steps": self.steps,
            "n": len(self.latency_ns),
            "mismatches": self.mismatches,
            "first_mismatch": self.first_mismatch,
            "latency_us": percentiles_us(self.latency_ns),
            "added_us": percentiles_us(self.added_ns),
        }


def replay_file(path: Path, target: Target, options: ReplayOptions) -> Replayed:
    """Replays one recording; raises `RecordingError` if the daemon serves another artifact than the recorded one."""
    recording = Recording.load(path)
    plan = ReplayPlan(target.address, str(path.resolve()), options.sessions, options.speed)
    with Worker("replay", plan, target.placement.client) as worker:
        opened = worker.receive(ReplayOpened, ANSWER_S_MAX)
        if not options.any_version:
            _check_artifact(path, recording, opened)
        _check_shapes(path, recording, opened)
        patience_s = ANSWER_S_MAX + REPLAY_SLOWDOWN_MAX * recording.duration_s / (options.speed or 1.0)
        result = worker.request("replay", ReplayResult, patience_s)
    return Replayed(
        str(path),
        recording.steps,
        recording.episodes,
        opened,
        nanoseconds(result.latency_ns),
        nanoseconds(result.service_ns),
        nanoseconds(result.engine_ns),
        result.duration_s,
        result.mismatches,
        result.first_mismatch,
    )


def recorded_policy(files: list[Path]) -> str:
    """Returns the `NAME@VERSION` that made the recordings; raises `RecordingError` unless all have the same."""
    references = {f"{recording.policy}@{recording.version}" for recording in map(Recording.load, files)}
    if len(references) > 1:
        raise RecordingError(f"expected recordings of one policy version, got {', '.join(sorted(references))}")
    return references.pop()


def check_actions(report: dict[str, Any]) -> None:
    """Raises `ActionMismatchError` if a replay got another action than the recorded one."""
    for summary in report["recordings"]:
        if summary["mismatches"]:
            raise ActionMismatchError(
                f"{summary['file']}: {summary['mismatches']} of {summary['n']} actions differ from the recording; "
                f"the first: {summary['first_mismatch']}"
            )


def measure_replay(files: list[Path], target: Target, options: ReplayOptions) -> dict[str, Any]:
    """Replays the files one after the other, between two measurements of the baselines; returns one report of all."""
    if not options.floor_s:
        return report([replay_file(path, target, options) for path in files], target, options, None)
    with pillion.connect(target.address, client_name="pillion-bench") as session:
        exchange = exchange_of(session.spec, 1)
    with Baselines(exchange, target.placement) as baselines:
        before = baselines.measure(options.floor_s)
        replays = [replay_file(path, target, options) for path in files]
        after = baselines.measure(options.floor_s)
    return report(replays, target, options, BaselineFigures.of(before, after))


def report(
    replays: list[Replayed], target: Target, options: ReplayOptions, floor: BaselineFigures | None
) -> dict[str, Any]:
    """Returns the report of `pillion bench replay`; `bench/README.md` describes its keys."""
    latency_ns, service_ns, engine_ns = (
        np.concatenate([getattr(replayed, name) for replayed in replays])
        for name in ("latency_ns", "service_ns", "engine_ns")
    )
    duration_s = sum(replayed.duration_s for replayed in replays)
    opened = replays[0].opened
    added_us = percentiles_us(latency_ns - engine_ns)
    floor_us = floor.floor_us() if floor else {"zmq": None, "lane": None}
    return {
        "n": len(latency_ns),
        "rows_per_s": round(len(latency_ns) / duration_s, 1),
        "latency_us": percentiles_us(latency_ns),
        "engine_us": percentiles_us(engine_ns),
        "floor_us": floor_us,
        "added_us": added_us,
        "added_over_floor_zmq": round(added_us["p50"] / floor_us["zmq"], 3) if floor_us["zmq"] else None,
        "service_us": percentiles_us(service_ns),
        "noise": floor.noise if floor else None,
        "mismatches": sum(replayed.mismatches for replayed in replays),
        "recordings": [replayed.summary() for replayed in replays],
        "speed": options.speed or "max",
        "sessions": options.sessions,
        "rows": 1,
        "seconds": round(duration_s, 3),
        "pin": str(target.placement),
        "server": target.server,
        "carrier": target.carrier,
        "policy": opened.policy,
        "version": opened.version,
        "digest": opened.digest,
        "host": describe_host(),
    }


def _check_artifact(path: Path, recording: Recording, opened: ReplayOpened) -> None:
    if opened.digest != recording.digest:
        raise RecordingError(
            f"{path.name}: expected the recorded {recording.policy}@{recording.version} {recording.digest}, got "
            f"{opened.policy}@{opened.version} {opened.digest}; use --any-version to replay it anyway"
        )


def _check_shapes(path: Path, recording: Recording, opened: ReplayOpened) -> None:
    for tensor in decode_spec(opened.spec).observation:
        array = recording.observation.get(tensor.name)
        expected = f"{tensor.dtype} {tensor.shape}"
        actual = "none" if array is None else f"{array.dtype} {list(array.shape[1:])}"
        if actual != expected:
            raise RecordingError(f"{path.name}: observation {tensor.name!r}: expected {expected}, got {actual}")
