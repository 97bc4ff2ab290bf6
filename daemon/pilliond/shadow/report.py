"""The report on a shadow: how its answers compare with those that were sent, in numbers."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec
import numpy as np

from pillion_protocol import Spec
from pilliond.ipc import shadow_page as cell
from pilliond.ipc.metrics_page import LATENCY_BUCKETS_NS
from pilliond.ipc.shadow_page import DISTANCE_BUCKETS, OUTPUTS, ShadowCounts
from pilliond.limits import SHADOW_OUTPUTS_MAX
from pilliond.shadow.comparison import is_continuous
from pilliond.versions.loaded_version import ACTION

_NS_PER_US: Final = 1e3


class ShadowState(StrEnum):
    """The state of a shadow. Rule: `running` and `silent` alternate; `ended` is final."""

    RUNNING = "running"
    SILENT = "silent"
    """It has not polled for half of `shadow.silent_s_max`: the host is busy, or it hangs."""
    ENDED = "ended"


class Compared(msgspec.Struct, frozen=True):
    """Results for one output of the compared rows."""

    name: str
    agreed_rows: int
    distance_mean: float | None
    """Mean Euclidean distance per row, without rows that have a NaN or an infinity on one side only. None if the output is
    discrete, or no row was compared."""
    distance_max: float | None
    """None also if it is infinite: see `non_finite_rows`."""


class Inference(msgspec.Struct, frozen=True):
    """Durations of the shadow's runs; None if there were none."""

    batches: int
    mean_us: float | None
    p50_us: float | None
    p99_us: float | None
    cpu_mean_us: float | None
    """CPU time. The shadow runs at the lowest priority, so its wall-clock time includes waiting for other processes."""


class ShadowReport(msgspec.Struct, frozen=True):
    """The shadow that runs, or the last one that ran."""

    policy: str
    version: str
    digest: str
    live: str
    """The version that it is compared with."""
    share: float
    state: ShadowState
    by: str
    reason: str
    began_at: str
    ended_at: str
    """Empty while it runs."""
    end_reason: str
    rows: int
    """Rows that were compared."""
    agreed_rows: int
    agreement: float | None
    """The share of compared rows in which the actions agree; None if no row was compared."""
    agreement_means: str
    non_finite_rows: int
    """Compared rows in which the shadow returned a NaN or an infinity and the live version did not."""
    skipped_rows: dict[str, int]
    """Rows that were not compared, by reason: `no_room` in the ring, `mid_episode` in a recurrent shadow, `failed` run."""
    waiting_bytes: int
    outputs: list[Compared]
    distances: dict[str, int]
    """Cumulative count of rows by the distance of their actions, per upper bucket edge; empty for discrete actions."""
    inference: Inference


def agreement_means(spec: Spec, distance_max: float) -> str:
    """Returns when two actions agree, in words."""
    action = next(tensor for tensor in spec.outputs if tensor.name == ACTION)
    if not is_continuous(action):
        return "they are equal"
    return f"their distance is at most {distance_max:g}" if distance_max else "they differ within the card's tolerance"


def compared_outputs(counts: ShadowCounts, spec: Spec) -> list[Compared]:
    """Returns the results for every output, in the order of the spec."""
    rows = counts.cells[cell.ROWS]
    compared = []
    for index, tensor in enumerate(spec.outputs[:SHADOW_OUTPUTS_MAX]):
        first = OUTPUTS + 3 * index
        has_distance = is_continuous(tensor) and rows > 0
        greatest = counts.numbers[first + 2]
        compared.append(
            Compared(
                tensor.name,
                counts.cells[first],
                counts.numbers[first + 1] / rows if has_distance else None,
                greatest if has_distance and np.isfinite(greatest) else None,
            )
        )
    return compared


def distance_buckets(counts: ShadowCounts) -> tuple[list[tuple[str, float]], float]:
    """Returns the cumulative buckets of the distance of actions, and its sum."""
    total = 0
    buckets: list[tuple[str, float]] = []
    for index, edge in enumerate((*DISTANCE_BUCKETS, None)):
        total += counts.cells[cell.DISTANCE + index]
        buckets.append(("+Inf" if edge is None else f"{edge:g}", total))
    return buckets, counts.numbers[cell.DISTANCE_SUM]


def inference_buckets(counts: ShadowCounts) -> tuple[list[tuple[str, float]], float]:
    """Returns the cumulative buckets of the duration of its runs in seconds, and its sum."""
    total = 0
    buckets: list[tuple[str, float]] = []
    for index, edge_ns in enumerate((*LATENCY_BUCKETS_NS, None)):
        total += counts.cells[cell.INFERENCE + index]
        buckets.append(("+Inf" if edge_ns is None else f"{edge_ns / 1e9:g}", total))
    return buckets, counts.cells[cell.INFERENCE_SUM_NS] / 1e9


def inference_of(counts: ShadowCounts) -> Inference:
    """Returns the durations of its runs."""
    batches = counts.cells[cell.BATCHES]
    if not batches:
        return Inference(0, None, None, None, None)
    return Inference(
        batches,
        counts.cells[cell.INFERENCE_SUM_NS] / batches / _NS_PER_US,
        _quantile_us(counts, 0.5),
        _quantile_us(counts, 0.99),
        counts.cells[cell.CPU_NS] / batches / _NS_PER_US,
    )


def _quantile_us(counts: ShadowCounts, share: float) -> float:
    """Returns a quantile, linearly interpolated between bucket edges."""
    first = cell.INFERENCE
    by_bucket = np.array(counts.cells[first : first + len(LATENCY_BUCKETS_NS) + 1], np.int64)
    cumulated = np.concatenate([[0], np.cumsum(by_bucket)])
    edges = np.array([0, *LATENCY_BUCKETS_NS, 2 * LATENCY_BUCKETS_NS[-1]], np.float64)
    return float(np.interp(share * cumulated[-1], cumulated, edges)) / _NS_PER_US
