"""The cost of idleness: idle sessions beside an active one, and a daemon without any active session."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final

import msgspec
import numpy as np

from pillion_bench.host import describe_host
from pillion_bench.limits import ANSWER_S_MAX, IDLE_CONNECT_S_MAX
from pillion_bench.measurements.rounds import Segment, compare_segments
from pillion_bench.percentiles import nanoseconds, percentiles_us
from pillion_bench.process.daemon_process import DaemonProcess
from pillion_bench.process.placement import Placement, spare_cpus
from pillion_bench.process.worker import Worker
from pillion_bench.roles.idle_clients import IdlePlan
from pillion_bench.roles.load_driver import LoadOpened, LoadPlan, LoadRequest, LoadResult
from pillion_bench.shipped import examples_folder

POLICY: Final = "lunar-lander"

_ROUND: Final = ("alone", "crowded", "crowded", "alone too")
"""The daemons of a round, in order: the crowded one has the idle sessions."""

_WARM_UP_S: Final = 0.2


class IdleOptions(msgspec.Struct, frozen=True):
    """The number of idle sessions, and how long and how often an active one is measured."""

    sessions: int = 1_000
    seconds: float = 2.0
    rounds: int = 4
    carrier: str = "lane"

    @property
    def measurements(self) -> int:
        """The number of segments, and the two measurements of processor time."""
        return self.rounds * len(_ROUND) + 2


def measure_idle(placement: Placement, options: IdleOptions, advance: Callable[[str], None]) -> dict[str, Any]:
    """Measures an active session with and without idle ones, and the processor time of a daemon without an active one."""
    with ExitStack() as stack:
        daemons = {name: stack.enter_context(_open_daemon(placement, options)) for name in dict.fromkeys(_ROUND)}
        plan = IdlePlan(daemons["crowded"].address, options.sessions)
        idle_clients = stack.enter_context(Worker("idle", plan, spare_cpus(placement)))
        idle_clients.receive(str, IDLE_CONNECT_S_MAX)
        segments = []
        for name in _ROUND * options.rounds:
            advance(name)
            segments.append(_drive(name, daemons[name], placement, options.seconds))
        shares = {}
        for name in ("alone", "crowded"):
            advance(f"{name}, no active session")
            shares[name] = _cpu_share(daemons[name], options.seconds * len(_ROUND))
    return _report(segments, shares, placement, options)


def _open_daemon(placement: Placement, options: IdleOptions) -> DaemonProcess:
    return DaemonProcess(examples_folder(), POLICY, placement.server, options.carrier)


def _drive(name: str, daemon: DaemonProcess, placement: Placement, seconds: float) -> Segment:
    with Worker("load", LoadPlan(daemon.address, POLICY, "", 1, 1, 1, seed=1), placement.client) as client:
        client.receive(LoadOpened, ANSWER_S_MAX)
        result = client.request(LoadRequest.after(_WARM_UP_S, seconds), LoadResult, seconds + ANSWER_S_MAX)
    return Segment(name, nanoseconds(result.latency_ns) - nanoseconds(result.engine_ns))


def _cpu_share(daemon: DaemonProcess, seconds: float) -> float:
    """Returns the share of one core that both processes of a daemon use."""
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
