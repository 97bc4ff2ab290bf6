"""What a comparison found: the figures of each contestant, the noise, the ratios; as the report that is printed."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from pillion_bench.compare.client_fleet import Counted, Task
from pillion_bench.compare.systems import CONTESTANTS, Contestant, Field, versions
from pillion_bench.host import describe_host
from pillion_bench.measurements.floor import FloorSample
from pillion_bench.percentiles import QUANTILES, Nanoseconds, percentiles_us, relative_difference
from pillion_bench.process.placement import Placement

Row = dict[str, Any]

AGAIN: Final = ", again"
"""Follows the name of the contestant that is measured twice."""

FLOOR_NAMES: Final = {"lane": "floor-lane", "zmq": "floor-zmq"}
FLOOR_WORDS: Final = {
    "floor-lane": "floor: raw Unix socket ping-pong, no model",
    "floor-zmq": "floor: raw pyzmq echo, no model",
}

RATIOS: Final = (
    ("lane_over_floor", "added p50, 1 client: lane / raw Unix socket", "lane", "floor-lane"),
    ("zmq_over_floor", "added p50, 1 client: zmq / raw pyzmq echo", "zmq", "floor-zmq"),
    ("zmq_over_lane", "added p50, 1 client: zmq / lane", "zmq", "lane"),
    ("openpi_over_lane", "added p50, 1 client: openpi / lane", "openpi", "lane"),
    ("openpi_over_lane_spin", "added p50, 1 client: openpi / lane-spin", "openpi", "lane-spin"),
)
THROUGHPUT_CLIENTS: Final = 8
THROUGHPUT_RATIO: Final = "lane_over_openpi_rows_per_s"
THROUGHPUT_WORDS: Final = f"rows/s, {THROUGHPUT_CLIENTS} clients: lane / openpi"


class Series:
    """All rounds of one contestant with one number of clients."""

    def __init__(self, name: str, clients: int) -> None:
        self.name = name
        self.clients = clients
        self.error = ""
        self._rounds: list[Counted] = []

    def add(self, counted: Counted) -> None:
        """Adds a round; wrong answers in it are an error."""
        self._rounds.append(counted)
        if counted.mismatches:
            self.fail(f"{counted.mismatches:,} answers were not the policy's")
        elif not len(counted.latency_ns):
            self.fail("nothing was answered in time")

    def fail(self, why: str) -> None:
        """Withholds the figures; the first reason stays."""
        self.error = self.error or why

    def row(self) -> Row:
        """Its part of a report; without figures where there is an error."""
        head = {"name": self.name, "clients": self.clients, "error": self.error}
        if self.error or not self._rounds:
            return {**head, "n": 0, "rows_per_s": None, "latency_us": None, "engine_us": None, "added_us": None}
        latency_ns = np.concatenate([counted.latency_ns for counted in self._rounds])
        engine_ns = np.concatenate([counted.engine_ns for counted in self._rounds])
        seconds = sum(counted.seconds for counted in self._rounds)
        rounds = [percentiles_us(counted.latency_ns - counted.engine_ns)["p50"] for counted in self._rounds]
        return {**head, **_figures(latency_ns, engine_ns, seconds), "added_us_p50_of_rounds": rounds}


class Trial:
    """All that was measured with one policy."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.floors: list[FloorSample] = []
        self._series: dict[tuple[str, int], Series] = {}

    def series_of(self, name: str, clients: int) -> Series:
        """The series of that contestant with so many clients."""
        return self._series.setdefault((name, clients), Series(name, clients))

    def report(self) -> dict[str, Any]:
        """Its part of the report."""
        rows = [*self._floor_rows(), *(series.row() for series in self._series.values())]
        task = self.task
        return {
            "kind": task.kind,
            "policy": task.policy,
            "version": task.version,
            "digest": task.digest,
            "observation": f"{task.observation.dtype} {list(task.observation.shape)}",
            "observations": task.source,
            "rows": rows,
            "noise": _noise(rows, self.floors),
            "ratios": ratios(rows),
        }

    def _floor_rows(self) -> list[Row]:
        rows = []
        for carrier, name in FLOOR_NAMES.items():
            samples = [getattr(sample, f"{carrier}_ns") for sample in self.floors]
            round_trip_ns = np.concatenate(samples) if samples else np.empty(0, np.int64)
            if len(round_trip_ns):
                figures = _figures(round_trip_ns, np.zeros_like(round_trip_ns), float(round_trip_ns.sum()) / 1e9)
                rows.append({"name": name, "clients": 1, "error": "", **figures})
        return rows


def report(
    trials: list[Trial],
    field: Field,
    placement: Placement,
    clients: list[int],
    seconds: float,
    warmup_s: float,
    repeat: int,
) -> dict[str, Any]:
    """The report of `pillion bench compare`; `bench/README.md` says what each key means."""
    parts = [trial.report() for trial in trials]
    return {
        "report": "pillion.compare",
        "n": sum(row["n"] for part in parts for row in part["rows"]),
        "trials": parts,
        "contestants": {contestant.name: _description(contestant) for contestant in field.contestants},
        "left_out": field.left_out,
        "clients": clients,
        "seconds": seconds,
        "warmup_s": warmup_s,
        "repeat": repeat,
        "pin": str(placement),
        "host": describe_host(),
    }


def ratios(rows: list[Row]) -> dict[str, float | None]:
    """What the comparison is about; None where one of the two has no figures."""
    alone = {row["name"]: row["added_us"]["p50"] for row in rows if row["clients"] == 1 and row["added_us"]}
    together = {row["name"]: row["rows_per_s"] for row in rows if row["clients"] == THROUGHPUT_CLIENTS}
    found = {key: _ratio(alone.get(above), alone.get(below)) for key, _, above, below in RATIOS}
    return {**found, THROUGHPUT_RATIO: _ratio(together.get("lane"), together.get("openpi"))}


def first_error(report: dict[str, Any]) -> str:
    """The first contestant without figures, in words; empty where all have them."""
    for part in report["trials"]:
        for row in part["rows"]:
            if row["error"]:
                return f"{part['policy']}: {row['name']}, {row['clients']} clients: {row['error']}"
    return ""


def words_of(name: str) -> str:
    """What is measured under that name."""
    words = {contestant.name: contestant.words for contestant in CONTESTANTS} | FLOOR_WORDS
    return words.get(name.removesuffix(AGAIN), name) + (AGAIN if name.endswith(AGAIN) else "")


def _figures(latency_ns: Nanoseconds, engine_ns: Nanoseconds, seconds: float) -> Row:
    return {
        "n": len(latency_ns),
        "rows_per_s": round(len(latency_ns) / seconds, 1),
        "latency_us": percentiles_us(latency_ns),
        "engine_us": percentiles_us(engine_ns),
        "added_us": percentiles_us(latency_ns - engine_ns),
    }


def _noise(rows: list[Row], floors: list[FloorSample]) -> dict[str, Any]:
    """How far two measurements of the same lie apart, as a share of their mean."""
    before, after = floors[::2], floors[1::2]
    return {
        "floor_lane": _floor_noise([floor.lane_ns for floor in before], [floor.lane_ns for floor in after]),
        "floor_zmq": _floor_noise([floor.zmq_ns for floor in before], [floor.zmq_ns for floor in after]),
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


def _floor_noise(before: list[Nanoseconds], after: list[Nanoseconds]) -> float | None:
    sides = [np.concatenate(side) if side else np.empty(0, np.int64) for side in (before, after)]
    if not all(len(side) for side in sides):
        return None
    first, second = (percentiles_us(side)["p50"] for side in sides)
    return round(relative_difference(first, second), 4)


def _ratio(above: float | None, below: float | None) -> float | None:
    return round(above / below, 3) if above and below else None


def _description(contestant: Contestant) -> dict[str, Any]:
    return {"words": contestant.words, "versions": versions(contestant)}
