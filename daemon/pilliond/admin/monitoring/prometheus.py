"""The metrics page as Prometheus metrics: a collector that reads it at each scrape."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

import pilliond
from pillion_protocol import BatchClose
from pilliond.admin.monitoring.shadow_prometheus import shadow_metrics
from pilliond.admin.monitoring.worker_prometheus import worker_metrics
from pilliond.ipc import metrics_page as page
from pilliond.ipc.device_status import device_status, replicas_of
from pilliond.ipc.metrics_page import DEVICE_PHASES, OUTCOMES, Histogram, MetricsPage, PolicyCells, VersionCells
from pilliond.limits import ENGINE_TEXT_CHARACTERS_MAX
from pilliond.policy_rollout import PolicyRollout
from pilliond.supervision.serving_state import ServingState
from pilliond.supervision.supervisor import Supervisor
from pilliond.supervision.watchdog import Watchdog

_NANOSECONDS: Final = 1e9


class PageCollector(Collector):
    """Reads the metrics page of one supervisor."""

    def __init__(self, supervisor: Supervisor, policies: Mapping[str, PolicyRollout], watchdog: Watchdog) -> None:
        self._supervisor = supervisor
        self._watchdog = watchdog
        self._policies = policies

    def collect(self) -> Iterator[Metric]:
        yield from self._identity()
        yield from self._requests()
        yield from self._batches()
        yield from self._result_caches()
        yield from self._versions()
        yield self._service_times()
        yield self._device_durations()
        yield from worker_metrics(self._supervisor)
        yield from self._rollouts()
        yield from shadow_metrics([policy.releases.shadows for policy in self._policies.values()])
        yield from self._supervision()
        yield from self._process()

    @property
    def _page(self) -> MetricsPage:
        return self._supervisor.page

    def _identity(self) -> Iterator[Metric]:
        yield _info("pillion_build_info", "Version of the daemon.", {"version": pilliond.__version__})
        names = ["policy", "version", "digest", "engine"]
        info = GaugeMetricFamily("pillion_policy_info", "The served policies.", labels=names)
        is_loaded = self._supervisor.ready is not None
        for name, policy in self._supervisor.policies.items():
            engine = str(policy.stable.engine.get("kind", ""))[:ENGINE_TEXT_CHARACTERS_MAX] if is_loaded else ""
            info.add_metric([name, policy.stable.version, policy.stable.digest, engine], 1.0)
        yield info
        # A version on several devices has a sample for each; only those have the last label.
        names = ["policy", "version", "engine", "placement", "device", "fallback", "replica"]
        engines = GaugeMetricFamily("pillion_engine_info", "Where each loaded version runs and computes.", labels=names)
        for version in self._supervisor.versions():
            kind = str(version.engine.get("kind", ""))[:ENGINE_TEXT_CHARACTERS_MAX]
            placement = version.placement.where if version.placement else ""
            several = replicas_of(version.engine)
            for number, device in enumerate(map(device_status, several or [version.engine])):
                labels = [version.policy, version.version, kind, placement, device.device, device.fallback]
                engines.add_metric([*labels, str(number)] if several else labels, 1.0)
        yield engines
        is_ready = self._supervisor.state is ServingState.SERVING
        yield GaugeMetricFamily("pillion_ready", "1 while the daemon answers acts.", value=float(is_ready))

    def _requests(self) -> Iterator[Metric]:
        cells = self._page.cells
        requests = CounterMetricFamily("pillion_requests", "Acts, by outcome.", labels=["policy", "outcome"])
        refusals = CounterMetricFamily(
            "pillion_refusals", "Refused messages other than acts, by outcome.", labels=["outcome"]
        )
        for name, sets in self._request_cells():
            for index, outcome in enumerate(OUTCOMES):
                requests.add_metric([name, outcome], sum(cells[its.requests + index] for its in sets))
        for index, outcome in enumerate(OUTCOMES):
            if outcome not in ("ok", "fallback"):
                refusals.add_metric([outcome], cells[page.REFUSALS + index])
        yield requests
        yield refusals
        yield _counter("pillion_resends", "Acts that were resent and got the same answer.", cells[page.RESENDS])
        budgeted = CounterMetricFamily(
            "pillion_budgeted_acts",
            "Acts with a budget, by what it counts from: when the client sent the act, or, where that is not known, when "
            "the daemon read it.",
            labels=["counted_from"],
        )
        budgeted.add_metric(["sent"], cells[page.BUDGETS_SENT])
        budgeted.add_metric(["read"], cells[page.BUDGETS_READ])
        yield budgeted
        yield self._of_versions(
            "pillion_request_duration_seconds",
            "Time from an act's last byte to its answer.",
            lambda cells: cells.request_duration,
        )
        yield self._of_policies(
            "pillion_queue_wait_seconds",
            "Time from the admission of an act until the engine runs it.",
            lambda cells: cells.queue_wait,
            _NANOSECONDS,
        )

    def _batches(self) -> Iterator[Metric]:
        cells = self._page.cells
        yield _counter("pillion_inferences", "Rows that the engine ran.", cells[page.INFERENCES])
        yield _counter("pillion_executions", "Batches that the engine ran.", cells[page.EXECUTIONS])
        closes = CounterMetricFamily(
            "pillion_batch_close", "Batches, by the reason why they were closed.", labels=["reason"]
        )
        for reason in BatchClose:
            if reason is BatchClose.CACHED:
                # Of acts that needed no batch.
                continue
            closes.add_metric([reason.name.lower()], cells[page.BATCH_CLOSES + reason])
        yield closes
        yield self._of_policies("pillion_batch_rows", "Rows in a batch.", lambda cells: cells.batch_rows, 1.0)
        yield self._of_versions(
            "pillion_inference_duration_seconds",
            "Duration of one run of the engine.",
            lambda cells: cells.inference_duration,
        )

    def _result_caches(self) -> Iterator[Metric]:
        text = "Acts that were answered from the result cache."
        hits = CounterMetricFamily("pillion_result_cache_hits", text, labels=["policy"])
        text = "Acts that were looked up in the result cache, and not found."
        misses = CounterMetricFamily("pillion_result_cache_misses", text, labels=["policy"])
        rows = GaugeMetricFamily("pillion_result_cache_rows", "Rows in the result cache.", labels=["policy"])
        text = "Memory of the result cache: observations, outputs and what the interpreter needs for them."
        held = GaugeMetricFamily("pillion_result_cache_bytes", text, labels=["policy"])
        cells = self._page.cells
        for name, its in self._policy_cells():
            hits.add_metric([name], cells[its.cache_hits])
            misses.add_metric([name], cells[its.cache_misses])
            rows.add_metric([name], cells[its.cache_rows])
            held.add_metric([name], cells[its.cache_bytes])
        yield from (hits, misses, rows, held)

    def _versions(self) -> Iterator[Metric]:
        cells = self._page.cells
        leases = GaugeMetricFamily("pillion_version_leases", "Episode groups, by the version that they lease.", labels=["policy", "version"])  # fmt: skip
        for version in self._supervisor.versions():
            leases.add_metric(
                [version.policy, version.version], cells[page.VERSION_CELLS[version.metrics_index].episodes]
            )
        yield leases
        held = GaugeMetricFamily("pillion_held_versions", "Versions held for evaluations.", labels=["policy"])
        for name, policy in self._supervisor.policies.items():
            held.add_metric([name], len(policy.version_table.held))
        yield held

    def _service_times(self) -> Metric:
        text = "Service time of a batch: its quickest runs (fast) and its slowest ones (slow), by bucket of rows."
        labels = ["policy", "version", "rows", "bound"]
        family = GaugeMetricFamily("pillion_service_time_seconds", text, labels=labels)
        for version in self._supervisor.versions():
            for rows, fast_ns, slow_ns in self._page.service_times(version.metrics_index):
                of_bucket = [version.policy, version.version, str(rows)]
                family.add_metric([*of_bucket, "fast"], fast_ns / _NANOSECONDS)
                family.add_metric([*of_bucket, "slow"], slow_ns / _NANOSECONDS)
        return family

    def _device_durations(self) -> Metric:
        """Returns the times of the versions on a device and, where there is one, of the acts that several versions ran."""
        text = "How long a device took for one batch, by its own clock: to copy it in, to compute it, to copy it out."
        family = HistogramMetricFamily("pillion_device_duration_seconds", text, labels=["policy", "version", "phase"])
        for policy, channel in self._supervisor.policies.items():
            table = channel.version_table
            found = [version for version in table if device_status(version.engine).is_on_device]
            indices = {version.version: version.metrics_index for version in found}
            for version, index in {"mixed": table.mixed_index, **indices}.items() if found else ():
                for phase, histogram in zip(DEVICE_PHASES, page.VERSION_CELLS[index].device_duration, strict=True):
                    family.add_metric([policy, version, phase], *self._buckets(histogram, _NANOSECONDS))
        return family

    def _rollouts(self) -> Iterator[Metric]:
        switches = CounterMetricFamily("pillion_switches", "Switches and rollbacks, by outcome.", labels=["policy", "outcome"])  # fmt: skip
        rollbacks = CounterMetricFamily("pillion_auto_rollbacks", "Automatic rollbacks, by the guardrail that was crossed.", labels=["policy", "reason"])  # fmt: skip
        text = "p99 latency of the stable version during the last staging, relative to before."
        impact = GaugeMetricFamily("pillion_swap_impact_ratio", text, labels=["policy"])
        text = "Pauses of stagings that slowed the stable version down."
        pauses = CounterMetricFamily("pillion_staging_pauses", text, labels=["policy"])
        text = "Time for which stagings were paused."
        paused_s = CounterMetricFamily("pillion_staging_paused_seconds", text, labels=["policy"])
        text = "Longest stall of the serving loop while a version was loaded."
        stall_s = GaugeMetricFamily("pillion_load_stall_seconds", text, labels=["policy"])
        for name, policy in self._policies.items():
            releases = policy.releases
            for outcome, count in releases.operations.switches.items():
                switches.add_metric([name, outcome.value], count)
            for reason, count in releases.guardrails.auto_rollbacks.items():
                rollbacks.add_metric([name, reason], count)
            if releases.stager.swap_impact is not None:
                impact.add_metric([name], releases.stager.swap_impact)
            pauses.add_metric([name], releases.stager.pauses)
            paused_s.add_metric([name], releases.stager.paused_s)
            stall_s.add_metric([name], releases.load_stall_ns / _NANOSECONDS)
        yield from (switches, rollbacks, pauses, paused_s, stall_s)
        if impact.samples:
            yield impact

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
        sessions = GaugeMetricFamily("pillion_sessions", "Live sessions.", labels=["policy"])
        episodes = GaugeMetricFamily("pillion_episodes", "Live episode groups.", labels=["policy"])
        for name, its in self._policy_cells():
            sessions.add_metric([name], cells[its.sessions])
            episodes.add_metric([name], cells[its.episodes])
        yield sessions
        yield episodes
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

    def _policy_cells(self) -> list[tuple[str, PolicyCells]]:
        return [(name, policy.channel.cells) for name, policy in self._policies.items()]

    def _request_cells(self) -> list[tuple[str, list[PolicyCells]]]:
        """Returns the cells of each policy, and of acts of an unknown one: the only policy, or the label ""."""
        found = [(name, [cells]) for name, cells in self._policy_cells()]
        if len(found) == 1:
            found[0][1].append(page.UNKNOWN_POLICY)
            return found
        return [*found, ("", [page.UNKNOWN_POLICY])]

    def _of_versions(self, name: str, text: str, histogram_of: Callable[[VersionCells], Histogram]) -> Metric:
        """Returns a family in seconds: a histogram of each version, and of the acts that several versions ran (`mixed`)."""
        family = HistogramMetricFamily(name, text, labels=["policy", "version"])
        for policy, channel in self._supervisor.policies.items():
            table = channel.version_table
            found = [("mixed", table.mixed_index), *((version.version, version.metrics_index) for version in table)]
            for version, index in found:
                histogram = histogram_of(page.VERSION_CELLS[index])
                family.add_metric([policy, version], *self._buckets(histogram, _NANOSECONDS))
        return family

    def _of_policies(
        self, name: str, text: str, histogram_of: Callable[[PolicyCells], Histogram], unit: float
    ) -> Metric:
        """Returns a family with a histogram of each policy."""
        family = HistogramMetricFamily(name, text, labels=["policy"])
        for policy, cells in self._policy_cells():
            family.add_metric([policy], *self._buckets(histogram_of(cells), unit))
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
