"""Switches back and forth between two versions under full load, and what those who act feel of it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pillion_artifacts import Store
from pillion_artifacts.store.aliases import move_alias
from pillion_bench.errors import ActionMismatchError
from pillion_bench.host import describe_host
from pillion_bench.measurements.floor import ANSWER_S_MAX
from pillion_bench.percentiles import percentiles_us
from pillion_bench.process.daemon_process import DaemonProcess
from pillion_bench.process.placement import Placement
from pillion_bench.process.worker import Worker
from pillion_bench.recordings.observations import real_observations
from pillion_bench.roles.switch_driver import OBSERVATIONS, SwitchPlan, SwitchResult
from pillion_bench.variants import POLICY, publish_variant
from pilliond.commands.admin_client import AdminClient
from pilliond.engine.onnx import OnnxEngine

VERSIONS: Final = ("1.0.0", "1.1.0", "1.2.0")
"""Two of them go back and forth; of three in turn, none is still loaded when it is switched to."""

SHIFT: Final = 100.0
"""By how much the value of a version lies above that of the one before."""

AROUND_S: Final = 0.02
"""Before and after a switch, for the greatest pause around it: what the operator's requests cost is in it."""

EARLY: Final = 10
"""Resident memory after so many switches is what the end is compared with."""

_PATH: Final = f"/v1/policies/{POLICY}"
_NS: Final = 1e9


class SwitchOptions(msgspec.Struct, frozen=True):
    """How much load, how many switches, and whether each version is loaded anew."""

    sessions: int = 16
    switches: int = 100
    acts_of_episode: int = 50
    before_s: float = 5.0
    pause_s: float = 0.1
    restage: bool = False
    """Three versions in turn, so that each is staged and loaded for each switch."""

    @property
    def versions(self) -> tuple[str, ...]:
        """Those that are switched to in turn, from the second on."""
        return VERSIONS if self.restage else VERSIONS[:2]


class Span(msgspec.Struct, frozen=True):
    """From when to when, on CLOCK_MONOTONIC."""

    from_ns: int
    until_ns: int


class Course(msgspec.Struct):
    """What the operator did, and what the daemon said of it."""

    quiet: Span
    switched: list[dict[str, Any]] = []
    staged: list[Span] = []
    resident_bytes: list[int] = []
    rollback_ms: list[float] = []


def measure_switch(placement: Placement, options: SwitchOptions, advance: Callable[[str], None]) -> dict[str, Any]:
    """Runs it and gives the report. Raises `ActionMismatchError` where an answer is not that of the version it names."""
    with tempfile.TemporaryDirectory(prefix="pillion-bench-") as folder:
        root = Path(folder) / "store"
        expected = {}
        for number, version in enumerate(options.versions):
            publish_variant(root, version, number * SHIFT)
            expected.update(expected_outputs(Store(root), version))
        move_alias(Store(root), POLICY, "stable", VERSIONS[0], expected="", by="the bench")
        with DaemonProcess(root, f"{POLICY}@stable", placement.server, "lane", has_admin=True) as daemon:
            plan = SwitchPlan(daemon.address, options.sessions, options.acts_of_episode, expected)
            with Worker("switch", plan, placement.client) as driver:
                driver.hear(str, ANSWER_S_MAX)
                with _out_of_the_way():
                    course = operate(daemon, options, advance)
                result = driver.ask("enough", SwitchResult, ANSWER_S_MAX)
    return report(course, result, options, placement)


def expected_outputs(store: Store, version: str) -> dict[str, list[bytes]]:
    """What a version answers to each observation alone, by its digest; the certificate says that a batch changes nothing."""
    artifact = store.load(f"{POLICY}@{version}")
    spec = artifact.card.spec()
    engine = OnnxEngine(artifact.model, spec, artifact.card.distribution.parameters(), 1)
    observations = real_observations(POLICY, spec)
    outputs = []
    for number in range(OBSERVATIONS):
        for view, frame in zip(engine.input_views, observations.frames(number, 1), strict=True):
            view[:] = frame
        engine.runs[1]()
        outputs.append(b"".join(engine.outputs[tensor.name][:1].tobytes() for tensor in spec.outputs))
    return {artifact.digest.removeprefix("sha256:"): outputs}


def operate(daemon: DaemonProcess, options: SwitchOptions, advance: Callable[[str], None]) -> Course:
    """Waits, switches back and forth, rolls back; all through the admin port."""
    admin = AdminClient(f"unix://{daemon.admin_path}")
    began_ns = time.monotonic_ns()
    time.sleep(options.before_s)
    course = Course(Span(began_ns, time.monotonic_ns()))
    for number in range(1, options.switches + 1):
        version = options.versions[number % len(options.versions)]
        from_ns = time.monotonic_ns()
        body = {"version": version, "reason": "the bench", "by": "the bench"}
        done = admin.ended(admin.post(f"{_PATH}/switch", body))
        if done["load_ms"] is not None:
            course.staged.append(Span(from_ns, done["effect_ns"]))
        course.switched.append(done)
        time.sleep(options.pause_s)
        if number in (EARLY, options.switches):
            course.resident_bytes.append(daemon.resident_bytes())
        advance(version)
    for _ in range(0 if options.restage else EARLY):
        rolled = admin.ended(admin.post(f"{_PATH}/rollback", {"reason": "the bench", "by": "the bench"}))
        course.rollback_ms.append(rolled["effect_ms"])
        time.sleep(options.pause_s)
    return course


@contextmanager
def _out_of_the_way() -> Iterator[None]:
    """The operator takes what server and clients leave: a pause that it makes on their CPUs is none of the daemon's."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def report(course: Course, result: SwitchResult, options: SwitchOptions, placement: Placement) -> dict[str, Any]:
    """The report of `pillion bench switch`; `bench/README.md` says what each key means."""
    if result.wrong or result.mixed:
        raise ActionMismatchError(
            f"{result.wrong} answers are not those of the version they name, {result.mixed} mixed"
        )
    came_ns = np.frombuffer(result.came_ns, np.int64)
    latency_ns = np.frombuffer(result.latency_ns, np.int64)
    before = latency_ns[_within(came_ns, course.quiet)]
    staging = np.concatenate([latency_ns[_within(came_ns, span)] for span in course.staged] or [latency_ns[:0]])
    flips = [done["effect_ns"] for done in course.switched]
    quiet_flips = range(
        course.quiet.from_ns + int(AROUND_S * _NS), course.quiet.until_ns - int(AROUND_S * _NS), int(2 * AROUND_S * _NS)
    )
    p99_before, p99_staging = percentiles_us(before)["p99"], percentiles_us(staging)["p99"]
    early, late = (course.resident_bytes * 2)[:2] if course.resident_bytes else (0, 0)
    return {
        "acts": len(came_ns),
        "acts_of_version": result.acts,
        "episodes": result.episodes,
        "failed": result.refused,
        "doubled": result.doubled,
        "wrong": result.wrong,
        "mixed": result.mixed,
        "switches": len(course.switched),
        "staged": len(course.staged),
        "acts_per_s_before": round(len(before) / ((course.quiet.until_ns - course.quiet.from_ns) / _NS), 1),
        "before": {"n": len(before), "latency_us": percentiles_us(before)},
        "during_staging": {"n": len(staging), "latency_us": percentiles_us(staging)},
        "staging_over_before_p99": round(p99_staging / p99_before, 3) if p99_before and len(staging) else None,
        "gap_at_flip_us": gaps_us(came_ns, flips, 0.0),
        "gap_at_any_moment_us": gaps_us(came_ns, quiet_flips, 0.0),
        "gap_around_flip_us": gaps_us(came_ns, flips, AROUND_S),
        "gap_around_any_moment_us": gaps_us(came_ns, quiet_flips, AROUND_S),
        "switch_effect_ms": _spread([done["effect_ms"] for done in course.switched if done["load_ms"] is None]),
        "staging_s": _spread([done["took_s"] for done in course.switched if done["load_ms"] is not None]),
        "load_ms": _spread([done["load_ms"] for done in course.switched if done["load_ms"] is not None]),
        "load_stall_us": _spread([done["stall_us"] for done in course.switched if done["load_ms"] is not None]),
        "rollback_effect_ms": _spread(course.rollback_ms),
        "resident_mb": {"after_10": early / 1e6, f"after_{options.switches}": late / 1e6},
        "resident_growth": round(late / early - 1, 4) if early else None,
        "sessions": options.sessions,
        "acts_of_episode": options.acts_of_episode,
        "restage": options.restage,
        "policy": POLICY,
        "pin": str(placement),
        "host": describe_host(),
    }


def gaps_us(came_ns: NDArray[np.int64], moments_ns: Iterable[int], around_s: float) -> dict[str, float]:
    """The greatest pause between two answers, of anybody, of those that touch the time around each moment.

    `around_s` 0: the pause that the moment falls into.
    """
    around_ns = int(around_s * _NS)
    gaps = []
    for at_ns in moments_ns:
        first, last = np.searchsorted(came_ns, [at_ns - around_ns, at_ns + around_ns])
        if first > 0 and last < len(came_ns):
            gaps.append(float(np.diff(came_ns[first - 1 : last + 1]).max()) / 1e3)
    return _spread(gaps)


def _spread(values: list[float]) -> dict[str, float]:
    """How many, median, and of ten and more the 90th percentile; the worst is one of them and no estimate of anything."""
    if not values:
        return {"n": 0}
    return {
        "n": len(values),
        "median": round(float(np.median(values)), 3),
        "p90": round(float(np.percentile(values, 90)), 3),
        "worst": round(max(values), 3),
    }


def _within(came_ns: NDArray[np.int64], span: Span) -> NDArray[np.bool_]:
    return (came_ns >= span.from_ns) & (came_ns < span.until_ns)
