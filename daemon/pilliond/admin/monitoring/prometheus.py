"""The metrics page as Prometheus metrics: a collector that reads it at each scrape."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

import pilliond
from pillion_protocol import BatchClose
from pilliond.admin.monitoring.shadow_prometheus import shadow_metrics
from pilliond.ipc import metrics_page as page
from pilliond.ipc.metrics_page import OUTCOMES, Histogram, MetricsPage, VersionCells
from pilliond.rollout.releases import Releases
from pilliond.supervision.serving_state import ServingState
from pilliond.supervision.supervisor import Supervisor
from pilliond.supervision.watchdog import Watchdog

_NANOSECONDS: Final = 1e9


class PageCollector(Collector):
    """Reads the metrics page of one supervisor."""

    def __init__(self, supervisor: Supervisor, releases: Releases, watchdog: Watchdog) -> None:
        self._supervisor = supervisor
        self._watchdog = watchdog
        self._releases = releases

    def collect(self) -> Iterator[Metric]:
        yield from self._identity()
        yield from self._requests()
        yield from self._batches()
        yield from self._versions()
        yield from shadow_metrics(self._releases.shadows)
        yield from self._supervision()
        yield from self._process()

    @property
    def _page(self) -> MetricsPage:
        return self._supervisor.page

    def _identity(self) -> Iterator[Metric]:
        artifact = self._supervisor.stable
        yield _info("pillion_build_info", "Version of the daemon.", {"version": pilliond.__version__})
        labels = {"policy": artifact.policy, "version": artifact.version, "digest": artifact.digest}
        engine = self._supervisor.ready.engine["kind"] if self._supervisor.ready else ""
        yield _info("pillion_policy_info", "The served policy.", {**labels, "engine": engine})
        is_ready = self._supervisor.state is ServingState.SERVING
        yield GaugeMetricFamily("pillion_ready", "1 while the daemon answers acts.", value=float(is_ready))

    def _requests(self) -> Iterator[Metric]:
        cells = self._page.cells
        policy = self._supervisor.stable.policy
        requests = CounterMetricFamily("pillion_requests", "Acts, by outcome.", labels=["policy", "outcome"])
        refusals = CounterMetricFamily(
            "pillion_refusals", "Refused messages other than acts, by outcome.", labels=["outcome"]
        )
        for index, outcome in enumerate(OUTCOMES):
            requests.add_metric([policy, outcome], cells[page.REQUESTS + index])
            if outcome not in ("ok", "fallback"):
                refusals.add_metric([outcome], cells[page.REFUSALS + index])
        yield requests
        yield refusals
        yield _counter("pillion_resends", "Acts that were resent and got the same answer.", cells[page.RESENDS])
        yield self._of_versions(
            "pillion_request_duration_seconds",
            "Time from an act's last byte to its answer.",
            [(name, cells.request_duration) for name, cells in self._version_cells()],
        )
        yield self._seconds(
            "pillion_queue_wait_seconds", "Time from the admission of an act until the engine runs it.", page.QUEUE_WAIT
        )

    def _batches(self) -> Iterator[Metric]:
        cells = self._page.cells
        yield _counter("pillion_inferences", "Rows that the engine ran.", cells[page.INFERENCES])
        yield _counter("pillion_executions", "Batches that the engine ran.", cells[page.EXECUTIONS])
        closes = CounterMetricFamily(
            "pillion_batch_close", "Batches, by the reason why they were closed.", labels=["reason"]
        )
        for reason in BatchClose:
            closes.add_metric([reason.name.lower()], cells[page.BATCH_CLOSES + reason])
        yield closes
        yield self._histogram("pillion_batch_rows", "Rows in a batch.", page.BATCH_ROWS, 1.0)
        yield self._of_versions(
            "pillion_inference_duration_seconds",
            "Duration of one run of the engine.",
            [(name, cells.inference_duration) for name, cells in self._version_cells()],
        )

    def _versions(self) -> Iterator[Metric]:
        cells = self._page.cells
        releases = self._releases
        leases = GaugeMetricFamily("pillion_version_leases", "Episode groups, by the version that they lease.", labels=["policy", "version"])  # fmt: skip
        for version in self._supervisor.version_table:
            leases.add_metric(
                [version.policy, version.version], cells[page.VERSION_CELLS[version.metrics_index].episodes]
            )
        yield leases
        held = len(self._supervisor.version_table.held)
        yield GaugeMetricFamily("pillion_held_versions", "Versions held for evaluations.", value=held)
        switches = CounterMetricFamily("pillion_switches", "Switches and rollbacks, by outcome.", labels=["outcome"])  # fmt: skip
        for outcome, count in releases.operations.switches.items():
            switches.add_metric([outcome.value], count)
        yield switches
        rollbacks = CounterMetricFamily("pillion_auto_rollbacks", "Automatic rollbacks, by the guardrail that was crossed.", labels=["reason"])  # fmt: skip
        for reason, count in releases.guardrails.auto_rollbacks.items():
            rollbacks.add_metric([reason], count)
        yield rollbacks
        if releases.stager.swap_impact is not None:
            text = "p99 latency of the stable version during the last staging, relative to before."
            yield GaugeMetricFamily("pillion_swap_impact_ratio", text, value=releases.stager.swap_impact)
        stager = releases.stager
        yield _counter(
            "pillion_staging_pauses", "Pauses of stagings that slowed the stable version down.", stager.pauses
        )
        text = "Time for which stagings were paused."
        yield _counter("pillion_staging_paused_seconds", text, stager.paused_s)
        stall_s = releases.load_stall_ns / _NANOSECONDS
        text = "Longest stall of the serving loop while a version was loaded."
        yield GaugeMetricFamily("pillion_load_stall_seconds", text, value=stall_s)

    def _supervision(self) -> Iterator[Metric]:
        supervisor, restarts = self._supervisor, self._supervisor.restarts
        yield _counter("pillion_serving_starts", "Starts of the serving process.", supervisor.starts)
        text = "Ends of the serving process since it last served steadily."
        yield GaugeMetricFamily("pillion_serving_failures", text, value=restarts.failures)
        states = GaugeMetricFamily("pillion_serving_state", "1 for the state of the serving process.", labels=["state"])
        current = supervisor.state
        for state in ServingState:
            states.add_metric([state.value], float(state is current))
        yield states
        text = "How often the serving process made no progress for a while."
        yield _counter("pillion_serving_stalls", text, self._watchdog.stalls)
        text = "Serving processes that were killed because they made no progress."
        yield _counter("pillion_serving_hangs", text, self._watchdog.kills)
        if current in (ServingState.SERVING, ServingState.UNRESPONSIVE):
            age_s = (time.monotonic_ns() - supervisor.ticked_ns) / _NANOSECONDS
            text = "Time since the last tick of the serving loop."
            yield GaugeMetricFamily("pillion_serving_tick_age_seconds", text, value=age_s)

    def _process(self) -> Iterator[Metric]:
        cells = self._page.cells
        yield GaugeMetricFamily("pillion_sessions", "Live sessions.", value=cells[page.SESSIONS])
        yield GaugeMetricFamily("pillion_episodes", "Live episode groups.", value=cells[page.EPISODES])
        yield GaugeMetricFamily("pillion_queue_rows", "Rows waiting for the engine.", value=cells[page.QUEUE_ROWS])
        yield _counter("pillion_sessions_opened", "Opened sessions.", cells[page.SESSIONS_OPENED])
        yield _counter("pillion_sessions_dropped", "Dropped sessions: the peer disconnected, was silent or did not read.", cells[page.SESSIONS_DROPPED])  # fmt: skip
        yield _counter("pillion_slot_acts", "Acts with observations in shared memory.", cells[page.SLOT_ACTS])
        yield GaugeMetricFamily("pillion_slot_bytes", "Shared memory granted for slots.", value=cells[page.SLOT_BYTES])
        spun_s = cells[page.SPUN_NS] / _NANOSECONDS
        yield _counter("pillion_busy_poll_seconds", "Time for which the serving loop polled without sleeping.", spun_s)
        lag_s = cells[page.LOOP_LAG_NS] / _NANOSECONDS
        yield GaugeMetricFamily("pillion_loop_lag_seconds", "Lateness of the serving loop's last tick.", value=lag_s)
        yield _counter("pillion_gc_pauses", "Garbage collections of the serving process.", cells[page.GC_PAUSES])
        pause_s = cells[page.GC_PAUSE_NS] / _NANOSECONDS
        yield _counter("pillion_gc_pause_seconds", "Time in garbage collections of the serving process.", pause_s)

    def _version_cells(self) -> list[tuple[str, VersionCells]]:
        """Returns the cells of each version, and of the acts that several versions ran (`mixed`)."""
        return [("mixed", page.VERSION_CELLS[0])] + [
            (version.version, page.VERSION_CELLS[version.metrics_index]) for version in self._supervisor.version_table
        ]

    def _of_versions(self, name: str, text: str, histograms: list[tuple[str, Histogram]]) -> Metric:
        """Returns a family in seconds with a histogram for each version."""
        family = HistogramMetricFamily(name, text, labels=["policy", "version"])
        for version, histogram in histograms:
            labels = [self._supervisor.stable.policy, version]
            family.add_metric(labels, *self._buckets(histogram, _NANOSECONDS))
        return family

    def _seconds(self, name: str, text: str, histogram: Histogram) -> Metric:
        return self._histogram(name, text, histogram, _NANOSECONDS)

    def _histogram(self, name: str, text: str, histogram: Histogram, unit: float) -> Metric:
        family = HistogramMetricFamily(name, text, labels=["policy"])
        family.add_metric([self._supervisor.stable.policy], *self._buckets(histogram, unit))
        return family

    def _buckets(self, histogram: Histogram, unit: float) -> tuple[list[tuple[str, float]], float]:
        """Returns the cumulative buckets, and the sum of the observed values."""
        cells = self._page.cells
        total = 0
        buckets: list[tuple[str, float]] = []
        for index, edge in enumerate(histogram.edges):
            total += cells[histogram.first + index]
            buckets.append((f"{edge / unit:g}", total))
        total += cells[histogram.first + len(histogram.edges)]
        buckets.append(("+Inf", total))
        return buckets, cells[histogram.sum_cell] / unit


def _info(name: str, text: str, labels: dict[str, str]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), 1.0)
    return family


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)
