"""The closed loop: sessions that act as soon as they are answered, from the bench's own processes."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Final

import msgspec
import numpy as np

from pillion_bench.errors import BadOptionError
from pillion_bench.exchange import exchange_of
from pillion_bench.host import describe_host
from pillion_bench.limits import ANSWER_S_MAX
from pillion_bench.measurements.floor import BaselineFigures, Baselines
from pillion_bench.percentiles import Nanoseconds, nanoseconds, percentiles_us
from pillion_bench.process.target import Target
from pillion_bench.process.worker import Worker
from pillion_bench.roles.load_driver import LoadOpened, LoadPlan, LoadRequest, LoadResult
from pillion_protocol import decode_spec

_DELIVERY_S: Final = 0.05
"""Time for a request to reach every process, added to the warm-up."""


class LoadOptions(msgspec.Struct, frozen=True):
    """The load and its duration. Sessions are those of all processes together."""

    sessions: int = 1
    rows: int = 1
    processes: int = 1
    connections: int = 0
    """Connections of each process; 0: one."""
    seconds: float = 5.0
    warmup_s: float = 1.0
    floor_s: float = 1.0
    """How long each baseline is measured, before and again after."""
    seed: int = 7

    def plans(self, target: Target) -> list[LoadPlan]:
        """Distributes the sessions evenly over the processes; raises `BadOptionError` if there are too few."""
        connections = self.connections or 1
        if self.sessions < self.processes * connections:
            raise BadOptionError(
                f"--sessions: expected at least one for each connection of each process "
                f"({self.processes * connections}), got {self.sessions}"
            )
        shares = [self.sessions // self.processes] * self.processes
        for index in range(self.sessions % self.processes):
            shares[index] += 1
        firsts = [self.seed + sum(shares[:index]) * self.rows for index in range(self.processes)]
        return [
            LoadPlan(target.address, target.policy, target.version_range, share, self.rows, connections, first)
            for share, first in zip(shares, firsts, strict=True)
        ]


class LoadFigures(msgspec.Struct, frozen=True):
    """The times of all acts that count, in ns, and the number of refused acts."""

    latency_ns: Nanoseconds
    engine_ns: Nanoseconds
    errors: int


def measure_load(target: Target, options: LoadOptions) -> dict[str, Any]:
    """Runs the load between two measurements of the baselines in the same placement; returns the report."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker("load", plan, target.placement.client)) for plan in options.plans(target)]
        opened = [worker.receive(LoadOpened, ANSWER_S_MAX) for worker in workers]
        exchange = exchange_of(decode_spec(opened[0].spec), options.rows)
        baselines = stack.enter_context(Baselines(exchange, target.placement))
        before = baselines.measure(options.floor_s)
        figures = _drive(workers, options)
        memory = target.daemon.resident_bytes() if target.daemon else None
        after = baselines.measure(options.floor_s)
    return report(target, options, opened[0], figures, BaselineFigures.of(before, after), memory)


def _drive(workers: list[Worker], options: LoadOptions) -> LoadFigures:
    request = LoadRequest.after(options.warmup_s + _DELIVERY_S, options.seconds)
    for worker in workers:
        worker.send(request)
    patience_s = options.warmup_s + options.seconds + ANSWER_S_MAX
    results = [worker.receive(LoadResult, patience_s) for worker in workers]
    return LoadFigures(
        np.concatenate([nanoseconds(result.latency_ns) for result in results]),
        np.concatenate([nanoseconds(result.engine_ns) for result in results]),
        sum(result.errors for result in results),
    )


def report(
    target: Target,
    options: LoadOptions,
    opened: LoadOpened,
    figures: LoadFigures,
    floor: BaselineFigures,
    memory: int | None,
) -> dict[str, Any]:
    """Returns the report of `pillion bench load`; `bench/README.md` describes its keys."""
    count = len(figures.latency_ns)
    added_us = percentiles_us(figures.latency_ns - figures.engine_ns)
    floor_us = floor.floor_us()
    return {
        "n": count,
        "rows_per_s": round(count * options.rows / options.seconds, 1),
        "latency_us": percentiles_us(figures.latency_ns),
        "engine_us": percentiles_us(figures.engine_ns),
        "floor_us": floor_us,
        "added_us": added_us,
        "added_over_floor_zmq": round(added_us["p50"] / floor_us["zmq"], 3) if floor_us["zmq"] else None,
        "noise": floor.noise,
        "floors": floor.details(),
        "errors": figures.errors,
        "sessions": options.sessions,
        "rows": options.rows,
        "processes": options.processes,
        "connections": options.connections or 1,
        "seconds": options.seconds,
        "pin": str(target.placement),
        "server": target.server,
        "carrier": target.carrier,
        "observations": opened.observations,
        "policy": opened.policy,
        "version": opened.version,
        "digest": opened.digest,
        "daemon": {
            "ready_s": round(target.daemon.ready_s, 3) if target.daemon else None,
            "resident_mb": round(memory / 1e6, 1) if memory is not None else None,
        },
        "host": describe_host(),
    }
