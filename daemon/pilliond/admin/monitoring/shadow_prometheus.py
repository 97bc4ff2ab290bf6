"""The shadow page as Prometheus metrics, read at each scrape. The metrics of an ended shadow stay until the next one."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from pilliond.ipc import shadow_page as cell
from pilliond.rollout.shadow_rollout import Shadows
from pilliond.shadow.report import ShadowState, distance_buckets, inference_buckets


def shadow_metrics(shadows: Shadows) -> Iterator[Metric]:
    """Yields the metrics of the running or the last shadow; none before the first one."""
    shadow = shadows.last
    if shadow is None:
        return
    counts = shadow.process.counts
    names, labels = ["policy", "version"], [shadow.policy, shadow.version]
    is_running = shadows.state(shadow) is not ShadowState.ENDED
    running = GaugeMetricFamily("pillion_shadow_running", "1 while the shadow runs.", labels=names)
    running.add_metric(labels, float(is_running))
    yield running
    for name, text, index in (
        ("pillion_shadow_rows", "Rows on which the shadow was compared with the stable version.", cell.ROWS),
        ("pillion_shadow_agreed_rows", "Compared rows whose actions agree.", cell.AGREED_ROWS),
        ("pillion_shadow_non_finite_rows", "Compared rows for which only the shadow returned a NaN or an infinity.", cell.NON_FINITE_ROWS),
    ):  # fmt: skip
        family = CounterMetricFamily(name, text, labels=names)
        family.add_metric(labels, counts.cells[index])
        yield family
    skipped = CounterMetricFamily(
        "pillion_shadow_skipped_rows", "Rows that were not compared, by reason.", labels=[*names, "reason"]
    )
    for reason, rows in counts.skipped_rows().items():
        skipped.add_metric([*labels, reason], rows)
    yield skipped
    distance = HistogramMetricFamily(
        "pillion_shadow_action_distance",
        "Euclidean distance between the shadow's action and the sent one.",
        labels=names,
    )
    distance.add_metric(labels, *distance_buckets(counts))
    yield distance
    inference = HistogramMetricFamily(
        "pillion_shadow_inference_duration_seconds",
        "Duration of one run of the shadow's engine, wall time.",
        labels=names,
    )
    inference.add_metric(labels, *inference_buckets(counts))
    yield inference
