"""What idle costs: silent sessions beside an active one, and a daemon that nobody asks anything."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final

import msgspec
import numpy as np

from pillion_bench.host import describe_host
from pillion_bench.measurements.disturb import Segment, compare_segments
from pillion_bench.measurements.floor import ANSWER_S_MAX
from pillion_bench.percentiles import percentiles_us
from pillion_bench.process.daemon_process import DaemonProcess
from pillion_bench.process.placement import Placement, bystander
from pillion_bench.process.worker import Worker
from pillion_bench.roles.idle_clients import SilentPlan
from pillion_bench.roles.load_driver import LoadOpened, LoadOrder, LoadPlan, LoadResult
from pillion_bench.shipped import examples_folder

POLICY: Final = "lunar-lander"
CONNECT_S_MAX: Final = 60.0

_ROUND: Final = ("alone", "crowded", "crowded", "alone too")
"""ABBA, as `pillion bench disturb` has it: noise is by how much the two that are alone differ."""

_WARM_UP_S: Final = 0.2


class IdleOptions(msgspec.Struct, frozen=True):
    """How many sessions keep silent, and how long and how often an active one is measured beside them."""

    sessions: int = 1_000
    seconds: float = 2.0
    rounds: int = 4
    carrier: str = "lane"

    @property
    def measurements(self) -> int:
        return self.rounds * len(_ROUND) + 2


def measure_idle(placement: Placement, options: IdleOptions, advance: Callable[[str], None]) -> dict[str, Any]:
    """Measures an active session with and without silent ones, and what a daemon without an active one takes."""
    with ExitStack() as stack:
        daemons = {name: stack.enter_context(_open_daemon(placement, options)) for name in dict.fromkeys(_ROUND)}
        plan = SilentPlan(daemons["crowded"].address, options.sessions)
        silent = stack.enter_context(Worker("silent", plan, bystander(placement)))
        silent.hear(str, CONNECT_S_MAX)
        segments = []
        for name in _ROUND * options.rounds:
            advance(name)
            segments.append(_drive(name, daemons[name], placement, options.seconds))
        shares = {}
        for name in ("alone", "crowded"):
            advance(f"{name}, nobody active")
            shares[name] = _cpu_share(daemons[name], options.seconds * len(_ROUND))
    return _report(segments, shares, placement, options)


def _open_daemon(placement: Placement, options: IdleOptions) -> DaemonProcess:
    return DaemonProcess(examples_folder(), POLICY, placement.server, options.carrier)


def _drive(name: str, daemon: DaemonProcess, placement: Placement, seconds: float) -> Segment:
    with Worker("load", LoadPlan(daemon.address, POLICY, "", 1, 1, 1, seed=1), placement.client) as client:
        client.hear(LoadOpened, ANSWER_S_MAX)
        from_ns = time.monotonic_ns() + int(_WARM_UP_S * 1e9)
        order = LoadOrder(from_ns, from_ns + int(seconds * 1e9))
        result = client.ask(order, LoadResult, seconds + ANSWER_S_MAX)
    round_trips_ns, engine_ns = (np.frombuffer(part, np.int64) for part in (result.latency_ns, result.engine_ns))
    return Segment(name, round_trips_ns - engine_ns, None)


def _cpu_share(daemon: DaemonProcess, seconds: float) -> float:
    """The share of one core that both processes of a daemon take."""
    before_s = daemon.cpu_s()
    began_s = time.monotonic()
    time.sleep(seconds)
    return round((daemon.cpu_s() - before_s) / (time.monotonic() - began_s), 5)


def _report(
    segments: list[Segment], shares: dict[str, float], placement: Placement, options: IdleOptions
) -> dict[str, Any]:
    noise, effect = compare_segments(segments)
    parts = {
        name: np.concatenate([segment.added_ns for segment in segments if segment.daemon.startswith(name)])
        for name in ("alone", "crowded")
    }
    return {
        "report": "pillion.idle",
        "n": sum(map(len, parts.values())),
        **{name: {"n": len(part), "added_us": percentiles_us(part)} for name, part in parts.items()},
        "noise": noise,
        "effect": effect,
        "added_us_p50_of_segments": [round(percentiles_us(segment.added_ns)["p50"], 2) for segment in segments],
        "cpu_share": shares,
        "sessions": options.sessions,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "carrier": options.carrier,
        "policy": POLICY,
        "pin": str(placement),
        "host": describe_host(),
    }
