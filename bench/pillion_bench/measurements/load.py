"""The closed loop: sessions that act as fast as they are answered, from processes of the bench's own."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any, Final

import msgspec
import numpy as np

from pillion_bench.errors import BadOptionError
from pillion_bench.exchange import exchange_of
from pillion_bench.host import describe_host
from pillion_bench.measurements.floor import ANSWER_S_MAX, FloorFigures, Floors
from pillion_bench.percentiles import Nanoseconds, percentiles_us
from pillion_bench.process.target import Target
from pillion_bench.process.worker import Worker
from pillion_bench.roles.load_driver import LoadOpened, LoadOrder, LoadPlan, LoadResult
from pillion_protocol import decode_spec

_TOGETHER_S: Final = 0.05
"""From the order to the first counted moment, beside the warm-up: every process has it by then."""


class LoadOptions(msgspec.Struct, frozen=True):
    """How much, from how many, for how long. Sessions and connections are those of all processes together."""

    sessions: int = 1
    rows: int = 1
    processes: int = 1
    connections: int = 0
    """Connections of each process; 0: one."""
    seconds: float = 5.0
    warmup_s: float = 1.0
    floor_s: float = 1.0
    """How long each floor is measured, before and again after."""
    seed: int = 7

    def plans(self, target: Target) -> list[LoadPlan]:
        """The sessions shared out evenly among the processes; raises `BadOptionError` where there are too few."""
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
    """All that was counted, in ns."""

    latency_ns: Nanoseconds
    engine_ns: Nanoseconds
    errors: int


def measure_load(target: Target, options: LoadOptions) -> dict[str, Any]:
    """Runs the load between two measurements of the floor in the same placement, and gives the report."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker("load", plan, target.placement.client)) for plan in options.plans(target)]
        opened = [worker.hear(LoadOpened, ANSWER_S_MAX) for worker in workers]
        exchange = exchange_of(decode_spec(opened[0].spec), options.rows)
        floors = stack.enter_context(Floors(exchange, target.placement))
        before = floors.measure(options.floor_s)
        figures = _drive(workers, options)
        memory = target.daemon.resident_bytes() if target.daemon else None
        after = floors.measure(options.floor_s)
    return report(target, options, opened[0], figures, FloorFigures.of(before, after), memory)


def _drive(workers: list[Worker], options: LoadOptions) -> LoadFigures:
    from_ns = time.monotonic_ns() + int((options.warmup_s + _TOGETHER_S) * 1e9)
    order = LoadOrder(from_ns, from_ns + int(options.seconds * 1e9))
    for worker in workers:
        worker.tell(order)
    patience_s = options.warmup_s + options.seconds + ANSWER_S_MAX
    results = [worker.hear(LoadResult, patience_s) for worker in workers]
    return LoadFigures(
        np.concatenate([np.frombuffer(result.latency_ns, np.int64) for result in results]),
        np.concatenate([np.frombuffer(result.engine_ns, np.int64) for result in results]),
        sum(result.errors for result in results),
    )


def report(
    target: Target,
    options: LoadOptions,
    opened: LoadOpened,
    figures: LoadFigures,
    floor: FloorFigures,
    memory: int | None,
) -> dict[str, Any]:
    """The report of `pillion bench load`; `bench/README.md` says what each key means."""
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
