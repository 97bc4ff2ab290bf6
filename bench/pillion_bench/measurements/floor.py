"""The baselines that no server on this host can beat: a raw pyzmq echo, a raw Unix socket echo, and the bare engine.

The command and the fields of the reports call them floors.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np

from pillion_artifacts import Store
from pillion_bench.exchange import Exchange, exchange_of
from pillion_bench.host import describe_host
from pillion_bench.limits import ANSWER_S_MAX
from pillion_bench.percentiles import Nanoseconds, nanoseconds, percentiles_us, relative_difference
from pillion_bench.process.placement import CpuSet, Placement
from pillion_bench.process.worker import Worker
from pillion_bench.roles.bare_engine import EnginePlan
from pillion_bench.roles.echo import EchoPlan, PingRequest, PingResult


class BaselineSample(msgspec.Struct, frozen=True):
    """Round trips of one measurement, in ns."""

    zmq_ns: Nanoseconds
    lane_ns: Nanoseconds


class Baselines:
    """Owns the four processes of the two echoes, which are idle between measurements; a context manager."""

    def __init__(self, exchange: Exchange, placement: Placement) -> None:
        self._exchange = exchange
        self._placement = placement
        self._stack = ExitStack()
        self._pings: dict[str, Worker] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pillion-bench-"))
            self._start(stack, folder, "echo", self._placement.server)
            self._pings = self._start(stack, folder, "ping", self._placement.client)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self, seconds: float) -> BaselineSample:
        """Pings over pyzmq, then over the Unix socket, for `seconds` each."""
        return BaselineSample(self._ping("zmq", seconds), self._ping("lane", seconds))

    def _start(self, stack: ExitStack, folder: str, role: str, cpus: CpuSet | None) -> dict[str, Worker]:
        """Starts the `echo` or the `ping` of both carriers at once, and waits until they are ready."""
        started = {
            carrier: stack.enter_context(
                Worker(f"{carrier}-{role}", EchoPlan(f"{folder}/{carrier}.sock", self._exchange), cpus)
            )
            for carrier in ("zmq", "lane")
        }
        for worker in started.values():
            worker.receive(str, ANSWER_S_MAX)
        return started

    def _ping(self, carrier: str, seconds: float) -> Nanoseconds:
        result = self._pings[carrier].request(PingRequest(seconds), PingResult, seconds + ANSWER_S_MAX)
        return nanoseconds(result.round_trip_ns)


class BaselineFigures(msgspec.Struct, frozen=True):
    """Two measurements of the baselines, before and after something: all samples, and how far the two differ."""

    zmq_ns: Nanoseconds
    lane_ns: Nanoseconds
    noise: float
    """|before - after| of the pyzmq echo's p50, as a share of their mean: smaller differences mean nothing."""

    @classmethod
    def of(cls, before: BaselineSample, after: BaselineSample) -> BaselineFigures:
        """Returns the figures of two measurements."""
        zmq_p50 = [percentiles_us(sample.zmq_ns)["p50"] for sample in (before, after)]
        return cls(
            np.concatenate([before.zmq_ns, after.zmq_ns]),
            np.concatenate([before.lane_ns, after.lane_ns]),
            round(relative_difference(*zmq_p50), 4),
        )

    def floor_us(self) -> dict[str, float | None]:
        """Returns the p50 of each echo; None if the socket cannot take messages of that size."""
        return {"zmq": _p50(self.zmq_ns), "lane": _p50(self.lane_ns)}

    def details(self) -> dict[str, Any]:
        """Returns the sample count and the percentiles of each echo."""
        parts = {"zmq": self.zmq_ns, "lane": self.lane_ns}
        return {name: {"n": len(values), **percentiles_us(values)} for name, values in parts.items()}


def measure_floor(store: Path, reference: str, rows: int, seconds: float, placement: Placement) -> dict[str, Any]:
    """Measures the baselines of `rows` rows of a policy; returns the report of `pillion bench floor`."""
    artifact = Store(store).load(reference)
    exchange = exchange_of(artifact.card.spec(), rows)
    with Baselines(exchange, placement) as baselines:
        before = baselines.measure(seconds / 2)
        engine_ns = _time_engine(store, f"{artifact.policy}@{artifact.version}", rows, seconds, placement)
        after = baselines.measure(seconds / 2)
    figures = BaselineFigures.of(before, after)
    zmq_s = float(figures.zmq_ns.sum()) / 1e9
    return {
        "n": len(figures.zmq_ns),
        "rows_per_s": round(len(figures.zmq_ns) * rows / zmq_s, 1) if zmq_s else 0.0,
        "latency_us": percentiles_us(figures.zmq_ns),
        "engine_us": percentiles_us(engine_ns),
        "floor_us": figures.floor_us(),
        "floors": {**figures.details(), "engine": {"n": len(engine_ns), **percentiles_us(engine_ns)}},
        "noise": figures.noise,
        "rows": rows,
        "act_bytes": sum(exchange.act_bytes),
        "action_bytes": sum(exchange.action_bytes),
        "seconds": seconds,
        "pin": str(placement),
        "policy": artifact.policy,
        "version": artifact.version,
        "digest": artifact.digest,
        "host": describe_host(),
    }


def _time_engine(store: Path, reference: str, rows: int, seconds: float, placement: Placement) -> Nanoseconds:
    with Worker("engine", EnginePlan(str(store), reference, rows), placement.server) as engine:
        engine.receive(str, ANSWER_S_MAX)
        result = engine.request(PingRequest(seconds), PingResult, seconds + ANSWER_S_MAX)
    return nanoseconds(result.round_trip_ns)


def _p50(values: Nanoseconds) -> float | None:
    return percentiles_us(values)["p50"] if len(values) else None
