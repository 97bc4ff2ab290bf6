"""The report of a comparison: the figures of each system, the noise and the ratios."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pillion_bench.compare.client_fleet import FleetFigures, Workload
from pillion_bench.compare.systems import SYSTEMS, Selection, System, versions
from pillion_bench.host import describe_host
from pillion_bench.measurements.floor import BaselineSample
from pillion_bench.percentiles import QUANTILES, Nanoseconds, percentiles_us, relative_difference
from pillion_bench.process.placement import Placement

Row = dict[str, Any]

AGAIN: Final = ", again"
"""The suffix of the name under which a system is measured a second time."""

FLOOR_NAMES: Final = {"lane": "floor-lane", "zmq": "floor-zmq"}
BASELINE_LABELS: Final = {
    "floor-lane": "baseline: raw Unix socket ping-pong, no model",
    "floor-zmq": "baseline: raw pyzmq echo, no model",
}

RATIOS: Final = (
    ("lane_over_floor", "added p50, 1 client: lane / raw Unix socket", "lane", "floor-lane"),
    ("zmq_over_floor", "added p50, 1 client: zmq / raw pyzmq echo", "zmq", "floor-zmq"),
    ("zmq_over_lane", "added p50, 1 client: zmq / lane", "zmq", "lane"),
    ("openpi_over_lane", "added p50, 1 client: openpi / lane", "openpi", "lane"),
    ("openpi_over_lane_spin", "added p50, 1 client: openpi / lane-spin", "openpi", "lane-spin"),
)
"""The key and the label of each ratio, and the names above and below the line."""

THROUGHPUT_CLIENTS: Final = 8
THROUGHPUT_RATIO: Final = "lane_over_openpi_rows_per_s"
THROUGHPUT_LABEL: Final = f"rows/s, {THROUGHPUT_CLIENTS} clients: lane / openpi"


class Series:
    """All rounds of one system with one number of clients."""

    def __init__(self, name: str, clients: int) -> None:
        self.name = name
        self.clients = clients
        self.error = ""
        self._rounds: list[FleetFigures] = []

    def add(self, figures: FleetFigures) -> None:
        """Adds a round; withholds the figures if an answer was wrong or there was none."""
        self._rounds.append(figures)
        if figures.mismatches:
            self.fail(f"{figures.mismatches:,} answers were not the policy's")
        elif not len(figures.latency_ns):
            self.fail("no answer arrived in the measured time")

    def fail(self, reason: str) -> None:
        """Withholds the figures. Only the first reason is reported."""
        self.error = self.error or reason

    def row(self) -> Row:
        """Returns its row of the report, without figures if there is an error."""
        head = {"name": self.name, "clients": self.clients, "error": self.error}
        if self.error or not self._rounds:
            return {**head, "n": 0, "rows_per_s": None, "latency_us": None, "engine_us": None, "added_us": None}
        latency_ns = np.concatenate([figures.latency_ns for figures in self._rounds])
        engine_ns = np.concatenate([figures.engine_ns for figures in self._rounds])
        seconds = sum(figures.seconds for figures in self._rounds)
        rounds = [percentiles_us(figures.latency_ns - figures.engine_ns)["p50"] for figures in self._rounds]
        return {**head, **_figures(latency_ns, engine_ns, seconds), "added_us_p50_of_rounds": rounds}


class PolicyResults:
    """All measurements with one policy."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.baselines: list[BaselineSample] = []
        self._series: dict[tuple[str, int], Series] = {}

    def series_of(self, name: str, clients: int) -> Series:
        """Returns the series of a system with a number of clients, new or existing."""
        return self._series.setdefault((name, clients), Series(name, clients))

    def report(self) -> dict[str, Any]:
        """Returns its entry in `trials` of the report."""
        rows = [*self._baseline_rows(), *(series.row() for series in self._series.values())]
        workload = self.workload
        return {
            "kind": workload.kind,
            "policy": workload.policy,
            "version": workload.version,
            "digest": workload.digest,
            "observation": f"{workload.observation.dtype} {list(workload.observation.shape)}",
            "observations": workload.source,
            "rows": rows,
            "noise": _noise(rows, self.baselines),
            "ratios": ratios(rows),
        }

    def _baseline_rows(self) -> list[Row]:
        rows = []
        for carrier, name in FLOOR_NAMES.items():
            samples = [getattr(sample, f"{carrier}_ns") for sample in self.baselines]
            round_trip_ns = np.concatenate(samples) if samples else np.empty(0, np.int64)
            if len(round_trip_ns):
                figures = _figures(round_trip_ns, np.zeros_like(round_trip_ns), float(round_trip_ns.sum()) / 1e9)
                rows.append({"name": name, "clients": 1, "error": "", **figures})
        return rows


def report(
    results: list[PolicyResults],
    selection: Selection,
    placement: Placement,
    clients: list[int],
    seconds: float,
    warmup_s: float,
    repeat: int,
) -> dict[str, Any]:
    """Returns the report of `pillion bench compare`; `bench/README.md` describes its keys."""
    parts = [policy.report() for policy in results]
    return {
        "report": "pillion.compare",
        "n": sum(row["n"] for part in parts for row in part["rows"]),
        "trials": parts,
        "contestants": {system.name: _description(system) for system in selection.systems},
        "left_out": selection.left_out,
        "clients": clients,
        "seconds": seconds,
        "warmup_s": warmup_s,
        "repeat": repeat,
        "pin": str(placement),
        "host": describe_host(),
    }


def ratios(rows: list[Row]) -> dict[str, float | None]:
    """Returns the ratios of the report; None if one of the two systems has no figures."""
    alone = {row["name"]: row["added_us"]["p50"] for row in rows if row["clients"] == 1 and row["added_us"]}
    together = {row["name"]: row["rows_per_s"] for row in rows if row["clients"] == THROUGHPUT_CLIENTS}
    found = {key: _ratio(alone.get(above), alone.get(below)) for key, _, above, below in RATIOS}
    return {**found, THROUGHPUT_RATIO: _ratio(together.get("lane"), together.get("openpi"))}


def first_error(report: dict[str, Any]) -> str:
    """Returns a text about the first system without figures; empty if all have figures."""
    for part in report["trials"]:
        for row in part["rows"]:
            if row["error"]:
                return f"{part['policy']}: {row['name']}, {row['clients']} clients: {row['error']}"
    return ""


def label_of(name: str) -> str:
    """Returns the label of a system or baseline, for a table."""
    labels = {system.name: system.label for system in SYSTEMS} | BASELINE_LABELS
    return labels.get(name.removesuffix(AGAIN), name) + (AGAIN if name.endswith(AGAIN) else "")


def _figures(latency_ns: Nanoseconds, engine_ns: Nanoseconds, seconds: float) -> Row:
    return {
        "n": len(latency_ns),
        "rows_per_s": round(len(latency_ns) / seconds, 1),
        "latency_us": percentiles_us(latency_ns),
        "engine_us": percentiles_us(engine_ns),
        "added_us": percentiles_us(latency_ns - engine_ns),
    }


def _noise(rows: list[Row], baselines: list[BaselineSample]) -> dict[str, Any]:
    """Returns how far two measurements of the same system differ, as a share of their mean."""
    before, after = baselines[::2], baselines[1::2]
    return {
        "floor_lane": _baseline_noise([sample.lane_ns for sample in before], [sample.lane_ns for sample in after]),
        "floor_zmq": _baseline_noise([sample.zmq_ns for sample in before], [sample.zmq_ns for sample in after]),
        "again": [_again_noise(row, again) for row, again in _measured_twice(rows)],
    }


def _measured_twice(rows: list[Row]) -> list[tuple[Row, Row]]:
    by_key = {(row["name"], row["clients"]): row for row in rows}
    pairs = [(row, by_key.get((row["name"] + AGAIN, row["clients"]))) for row in rows]
    return [(row, again) for row, again in pairs if again and row["added_us"] and again["added_us"]]


def _again_noise(row: Row, again: Row) -> Row:
    differences = {name: relative_difference(row["added_us"][name], again["added_us"][name]) for name in QUANTILES}
    rows_per_s = relative_difference(row["rows_per_s"], again["rows_per_s"])
    rounded = {name: round(value, 4) for name, value in {**differences, "rows_per_s": rows_per_s}.items()}
    return {"name": row["name"], "clients": row["clients"], **rounded}


def _baseline_noise(before: list[Nanoseconds], after: list[Nanoseconds]) -> float | None:
    sides = [np.concatenate(side) if side else np.empty(0, np.int64) for side in (before, after)]
    if not all(len(side) for side in sides):
        return None
    first, second = (percentiles_us(side)["p50"] for side in sides)
    return round(relative_difference(first, second), 4)


def _ratio(above: float | None, below: float | None) -> float | None:
    return round(above / below, 3) if above and below else None


def _description(system: System) -> dict[str, Any]:
    return {"words": system.label, "versions": versions(system)}
