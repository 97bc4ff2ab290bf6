"""The shadow pages as Prometheus metrics, read at each scrape. The metrics of an ended shadow stay until the next one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from pilliond.ipc import shadow_page as cell
from pilliond.rollout.shadow_rollout import Shadows
from pilliond.shadow.report import ShadowState, distance_buckets, inference_buckets

_LABELS: Final = ("policy", "version")


def shadow_metrics(shadows: Iterable[Shadows]) -> Iterator[Metric]:
    """Yields the metrics of the running or the last shadow of each policy; none before the first one."""
    last = [(each, shadow) for each in shadows if (shadow := each.last) is not None]
    if not last:
        return
    counted = [([shadow.policy, shadow.version], shadow.process.counts) for _, shadow in last]
    running = GaugeMetricFamily("pillion_shadow_running", "1 while the shadow runs.", labels=_LABELS)
    for each, shadow in last:
        is_running = each.state(shadow) is not ShadowState.ENDED
        running.add_metric([shadow.policy, shadow.version], float(is_running))
    yield running
    for name, text, index in (
        ("pillion_shadow_rows", "Rows on which the shadow was compared with the stable version.", cell.ROWS),
        ("pillion_shadow_agreed_rows", "Compared rows whose actions agree.", cell.AGREED_ROWS),
        ("pillion_shadow_non_finite_rows", "Compared rows for which only the shadow returned a NaN or an infinity.", cell.NON_FINITE_ROWS),
    ):  # fmt: skip
        family = CounterMetricFamily(name, text, labels=_LABELS)
        for labels, counts in counted:
            family.add_metric(labels, counts.cells[index])
        yield family
    skipped = CounterMetricFamily(
        "pillion_shadow_skipped_rows", "Rows that were not compared, by reason.", labels=[*_LABELS, "reason"]
    )
    for labels, counts in counted:
        for reason, rows in counts.skipped_rows().items():
            skipped.add_metric([*labels, reason], rows)
    yield skipped
    distance = HistogramMetricFamily(
        "pillion_shadow_action_distance",
        "Euclidean distance between the shadow's action and the sent one.",
        labels=_LABELS,
    )
    for labels, counts in counted:
        distance.add_metric(labels, *distance_buckets(counts))
    yield distance
    inference = HistogramMetricFamily(
        "pillion_shadow_inference_duration_seconds",
        "Duration of one run of the shadow's engine, wall time.",
        labels=_LABELS,
    )
    for labels, counts in counted:
        inference.add_metric(labels, *inference_buckets(counts))
    yield inference
