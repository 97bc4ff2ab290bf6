"""The workers as Prometheus metrics: the state, restarts and memory of each, and how many were lost for which cause."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from pilliond.ipc.loss_cause import LossCause
from pilliond.supervision.supervisor import Supervisor
from pilliond.supervision.worker_pool import State
from pilliond.supervision.worker_status import worker_status

_BYTES_PER_MB: Final = 1_000_000
_LABELS: Final = ("policy", "version")


def worker_metrics(supervisor: Supervisor) -> Iterator[Metric]:
    """Yields the metrics of the versions that run in workers."""
    states = GaugeMetricFamily("pillion_worker_state", "1 for the state of a worker.", labels=[*_LABELS, "state"])
    restarts = CounterMetricFamily("pillion_worker_restarts", "Workers that replaced a lost one.", labels=_LABELS)
    resident = GaugeMetricFamily("pillion_worker_resident_bytes", "Resident memory of a worker.", labels=_LABELS)
    device = GaugeMetricFamily(
        "pillion_worker_device_bytes", "Device memory that a worker took until it was warm.", labels=_LABELS
    )
    for version in supervisor.versions():
        worker = worker_status(version, supervisor.workers)
        if worker is None:
            continue
        labels = [version.policy, version.version]
        for state in get_args(State):
            states.add_metric([*labels, state], float(state == worker.state))
        restarts.add_metric(labels, worker.restarts)
        resident.add_metric(labels, worker.resident_bytes)
        device.add_metric(labels, worker.device_memory_mb * _BYTES_PER_MB)
    yield from (states, restarts, resident, device)
    losses = CounterMetricFamily("pillion_worker_losses", "Lost workers, by cause.", labels=["policy", "cause"])
    for policy in supervisor.policies:
        for cause in LossCause:
            losses.add_metric([policy, cause.value], supervisor.workers.losses[policy, cause])
    yield losses
