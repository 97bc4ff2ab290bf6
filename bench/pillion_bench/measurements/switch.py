"""Switches between two versions under full load, and the effect on the clients."""

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
from pillion_bench.limits import ANSWER_S_MAX
from pillion_bench.percentiles import Nanoseconds, nanoseconds, percentiles_us
from pillion_bench.process.daemon_process import DaemonProcess
from pillion_bench.process.placement import Placement
from pillion_bench.process.worker import Worker
from pillion_bench.recordings.observations import real_observations
from pillion_bench.roles.switch_driver import OBSERVATIONS, SwitchPlan, SwitchResult
from pillion_bench.variants import POLICY, publish_variant
from pilliond.commands.admin_client import AdminClient
from pilliond.engine.onnx import OnnxEngine

VERSIONS: Final = ("1.0.0", "1.1.0", "1.2.0")
"""Without `restage` the first two alternate and stay loaded. With it all three follow each other, and each is loaded anew."""

SHIFT: Final = 100.0
"""How much the value of each version lies above that of the one before."""

AROUND_S: Final = 0.02
"""The time before and after a switch for the longest pause around it, which includes the cost of the operator's requests."""

EARLY: Final = 10
"""The resident memory at the end is compared with the one after this many switches."""

_PATH: Final = f"/v1/policies/{POLICY}"
_NS: Final = 1e9


class SwitchOptions(msgspec.Struct, frozen=True):
    """The load, the number of switches, and whether each version is loaded anew."""

    sessions: int = 16
    switches: int = 100
    acts_of_episode: int = 50
    before_s: float = 5.0
    pause_s: float = 0.25
    restage: bool = False
    """Use three versions, so that each is staged and loaded for each switch."""

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions, in the order of the switches. The first one serves at the start."""
        return VERSIONS if self.restage else VERSIONS[:2]


class TimeWindow(msgspec.Struct, frozen=True):
    """A span of time on CLOCK_MONOTONIC."""

    from_ns: int
    until_ns: int


class SwitchLog(msgspec.Struct):
    """The operations, and what the daemon reported about them."""

    quiet: TimeWindow
    """The time before the first switch."""
    switched: list[dict[str, Any]] = []
    """The finished operation of each switch, as the admin port returns it."""
    staged: list[TimeWindow] = []
    """From the request to the switch, for each version that was staged."""
    resident_bytes: list[int] = []
    """After `EARLY` switches, and after all."""
    rollback_ms: list[float] = []


def measure_switch(placement: Placement, options: SwitchOptions, advance: Callable[[str], None]) -> dict[str, Any]:
    """Runs all switches; returns the report. Raises `ActionMismatchError` if an answer is not that of its version."""
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
                driver.receive(str, ANSWER_S_MAX)
                with _idle_priority():
                    log = operate(daemon, options, advance)
                result = driver.request("stop", SwitchResult, ANSWER_S_MAX)
    return report(log, result, options, placement)


def expected_outputs(store: Store, version: str) -> dict[str, list[bytes]]:
    """Returns a version's digest and its outputs for each observation by itself.

    They are expected in any batch too: the version's certificate says that a batch changes no bit.
    """
    artifact = store.load(f"{POLICY}@{version}")
    spec = artifact.card.spec()
    engine = OnnxEngine(artifact.model, spec, artifact.card.distribution.parameters(), 1)
    observations = real_observations(POLICY, spec)
    view = engine.memories[0].views.make(0, 1)
    outputs = []
    for number in range(OBSERVATIONS):
        for tensor, frame in zip(view.inputs, observations.frames(number, 1), strict=True):
            tensor[:] = frame
        engine.runs[1]()
        outputs.append(b"".join(engine.outputs[tensor.name][:1].tobytes() for tensor in spec.outputs))
    return {artifact.digest.removeprefix("sha256:"): outputs}


def operate(daemon: DaemonProcess, options: SwitchOptions, advance: Callable[[str], None]) -> SwitchLog:
    """Waits, switches and rolls back, all through the admin port."""
    admin = AdminClient(f"unix://{daemon.admin_path}")
    began_ns = time.monotonic_ns()
    time.sleep(options.before_s)
    log = SwitchLog(TimeWindow(began_ns, time.monotonic_ns()))
    for number in range(1, options.switches + 1):
        version = options.versions[number % len(options.versions)]
        from_ns = time.monotonic_ns()
        body = {"version": version, "reason": "the bench", "by": "the bench"}
        done = admin.ended(admin.post(f"{_PATH}/switch", body))
        if done["load_ms"] is not None:
            log.staged.append(TimeWindow(from_ns, done["effect_ns"]))
        log.switched.append(done)
        time.sleep(options.pause_s)
        if number in (EARLY, options.switches):
            log.resident_bytes.append(daemon.resident_bytes())
        advance(version)
    for _ in range(0 if options.restage else EARLY):
        operation = admin.ended(admin.post(f"{_PATH}/rollback", {"reason": "the bench", "by": "the bench"}))
        log.rollback_ms.append(operation["effect_ms"])
        time.sleep(options.pause_s)
    return log


@contextmanager
def _idle_priority() -> Iterator[None]:
    """Runs the block at the lowest priority: the operator must not interrupt the server or the clients on their CPUs."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def report(log: SwitchLog, result: SwitchResult, options: SwitchOptions, placement: Placement) -> dict[str, Any]:
    """Returns the report of `pillion bench switch`; `bench/README.md` describes its keys."""
    if result.wrong or result.mixed:
        raise ActionMismatchError(
            f"{result.wrong} answers are not those of the version they name, {result.mixed} are of a version not leased"
        )
    received_ns = nanoseconds(result.received_ns)
    latency_ns = nanoseconds(result.latency_ns)
    before = latency_ns[_within(received_ns, log.quiet)]
    staging = np.concatenate([latency_ns[_within(received_ns, window)] for window in log.staged] or [latency_ns[:0]])
    flips = [done["effect_ns"] for done in log.switched]
    quiet_flips = range(
        log.quiet.from_ns + int(AROUND_S * _NS), log.quiet.until_ns - int(AROUND_S * _NS), int(2 * AROUND_S * _NS)
    )
    p99_before, p99_staging = percentiles_us(before)["p99"], percentiles_us(staging)["p99"]
    early, late = (log.resident_bytes * 2)[:2] if log.resident_bytes else (0, 0)
    return {
        "acts": len(received_ns),
        "acts_of_version": result.acts,
        "episodes": result.episodes,
        "failed": result.refused,
        "doubled": result.doubled,
        "wrong": result.wrong,
        "mixed": result.mixed,
        "switches": len(log.switched),
        "staged": len(log.staged),
        "acts_per_s_before": round(len(before) / ((log.quiet.until_ns - log.quiet.from_ns) / _NS), 1),
        "before": {"n": len(before), "latency_us": percentiles_us(before)},
        "during_staging": {"n": len(staging), "latency_us": percentiles_us(staging)},
        "staging_over_before_p99": round(p99_staging / p99_before, 3) if p99_before and len(staging) else None,
        "gap_at_flip_us": gaps_us(received_ns, flips, 0.0),
        "gap_at_any_moment_us": gaps_us(received_ns, quiet_flips, 0.0),
        "gap_around_flip_us": gaps_us(received_ns, flips, AROUND_S),
        "gap_around_any_moment_us": gaps_us(received_ns, quiet_flips, AROUND_S),
        "switch_effect_ms": _spread([done["effect_ms"] for done in log.switched if done["load_ms"] is None]),
        "staging_s": _spread([done["took_s"] for done in log.switched if done["load_ms"] is not None]),
        "load_ms": _spread([done["load_ms"] for done in log.switched if done["load_ms"] is not None]),
        "load_stall_us": _spread([done["stall_us"] for done in log.switched if done["load_ms"] is not None]),
        "rollback_effect_ms": _spread(log.rollback_ms),
        "resident_mb": {"after_10": early / 1e6, f"after_{options.switches}": late / 1e6},
        "resident_growth": round(late / early - 1, 4) if early else None,
        "sessions": options.sessions,
        "acts_of_episode": options.acts_of_episode,
        "restage": options.restage,
        "policy": POLICY,
        "pin": str(placement),
        "host": describe_host(),
    }


def gaps_us(received_ns: Nanoseconds, moments_ns: Iterable[int], around_s: float) -> dict[str, float]:
    """Returns the spread of the longest pauses between two answers of any sessions, one pause for each moment.

    The pauses of a moment are those that overlap the time from `around_s` before it to `around_s` after it. At
    `around_s` 0 that is the one pause that contains the moment.
    """
    around_ns = int(around_s * _NS)
    gaps = []
    for at_ns in moments_ns:
        first, last = np.searchsorted(received_ns, [at_ns - around_ns, at_ns + around_ns])
        if first > 0 and last < len(received_ns):
            gaps.append(float(np.diff(received_ns[first - 1 : last + 1]).max()) / 1e3)
    return _spread(gaps)


def _spread(values: list[float]) -> dict[str, float]:
    """Returns count, median, 90th percentile and worst value. The worst is a single value, not an estimate."""
    if not values:
        return {"n": 0}
    return {
        "n": len(values),
        "median": round(float(np.median(values)), 3),
        "p90": round(float(np.percentile(values, 90)), 3),
        "worst": round(max(values), 3),
    }


def _within(received_ns: Nanoseconds, window: TimeWindow) -> NDArray[np.bool_]:
    return (received_ns >= window.from_ns) & (received_ns < window.until_ns)
