"""How many rows of an image policy a worker computes, beside the same engine in a bare loop on the same CPU."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any, Final

from pillion_bench.limits import ANSWER_S_MAX
from pillion_bench.measurements.engines.daemons import WORKER, engine_daemon, expect_workers, load_results
from pillion_bench.measurements.engines.series import largest_difference, order
from pillion_bench.measurements.engines.subjects import Subject
from pillion_bench.percentiles import nanoseconds
from pillion_bench.process.placement import Placement
from pillion_bench.process.worker import Worker
from pillion_bench.roles.bare_engine import EnginePlan
from pillion_bench.roles.echo import PingRequest, PingResult

ROWS: Final = 64

BARE: Final = "bare"
DEEP: Final = "worker_depth_2"
"""The next batch is gathered while one runs."""
KINDS: Final = (BARE, WORKER, DEEP)

_CLIENTS: Final = 2
"""While the rows of one client run, the other one sends its next."""


def measure_image_rows(
    subject: Subject, placement: Placement, seconds: float, rounds: int, advance: Callable[[str], None]
) -> dict[str, Any]:
    """Returns rows per second of both, and the ratio. Bare is the engine of the daemon; of engines but ONNX, the torch call."""
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    more = subject.settings
    with (
        engine_daemon(subject.store, subject.image, WORKER, placement, rows_max=ROWS, more=more) as worker,
        engine_daemon(subject.store, subject.image, WORKER, placement, rows_max=ROWS, depth=2, more=more) as deep,
        Worker(
            "engine", EnginePlan(str(subject.store), subject.image, ROWS, subject.engine), placement.client
        ) as engine,
    ):
        daemons = {WORKER: worker, DEEP: deep}
        for daemon in daemons.values():
            expect_workers(daemon, 1)
        engine.receive(str, ANSWER_S_MAX)
        for kind in order(KINDS, rounds):
            advance(f"{ROWS} rows of {subject.image}, {kind}")
            if kind in daemons:
                results = load_results(daemons[kind], subject.image, placement.server, seconds, _CLIENTS, ROWS)
                runs = sum(len(nanoseconds(result.latency_ns)) for result in results)
                rate = runs / seconds
            else:
                answer = engine.request(PingRequest(seconds), PingResult, seconds + ANSWER_S_MAX)
                rate = 1e9 / float(nanoseconds(answer.round_trip_ns).mean())
            rates[kind].append(round(rate * ROWS, 1))
    return {
        "policy": subject.image,
        "rows": ROWS,
        "clients": _CLIENTS,
        "n": round(sum(map(sum, rates.values())) * seconds),
        "rows_per_s": {kind: round(fmean(each), 1) for kind, each in rates.items()},
        "over_bare": {kind: round(fmean(rates[kind]) / fmean(rates[BARE]), 4) for kind in daemons},
        "noise": {kind: round(largest_difference(each), 4) for kind, each in rates.items()},
        "rows_per_s_of_segments": rates,
    }
