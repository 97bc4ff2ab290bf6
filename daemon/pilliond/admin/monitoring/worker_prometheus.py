"""The workers as Prometheus metrics: the state, restarts and memory of each, and how many were lost for which cause."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from pilliond.ipc.loss_cause import LossCause
from pilliond.supervision.supervisor import Supervisor
from pilliond.supervision.worker_pool import State
from pilliond.supervision.worker_status import replica_statuses, worker_status

_BYTES_PER_MB: Final = 1_000_000
_LABELS: Final = ("policy", "version")
_REPLICA: Final = "replica"
"""The last label. Only the workers of a version on several devices have it: those of any other keep their series."""


def worker_metrics(supervisor: Supervisor) -> Iterator[Metric]:
    """Yields the metrics of the versions that run in workers."""
    states = GaugeMetricFamily(
        "pillion_worker_state", "1 for the state of a worker.", labels=[*_LABELS, "state", _REPLICA]
    )
    restarts = CounterMetricFamily(
        "pillion_worker_restarts", "Workers that replaced a lost one.", labels=[*_LABELS, _REPLICA]
    )
    resident = GaugeMetricFamily(
        "pillion_worker_resident_bytes", "Resident memory of a worker.", labels=[*_LABELS, _REPLICA]
    )
    device = GaugeMetricFamily(
        "pillion_worker_device_bytes",
        "Device memory that a worker took until it was warm.",
        labels=[*_LABELS, _REPLICA],
    )
    for version in supervisor.versions():
        labels = [version.policy, version.version]
        replicas = replica_statuses(version, supervisor.workers)
        worker = worker_status(version, supervisor.workers)
        for each in replicas or ([] if worker is None else [worker]):
            number = [str(each.replica)] if replicas else []
            for state in get_args(State):
                states.add_metric([*labels, state, *number], float(state == each.state))
            restarts.add_metric([*labels, *number], each.restarts)
            resident.add_metric([*labels, *number], each.resident_bytes)
            device.add_metric([*labels, *number], each.device_memory_mb * _BYTES_PER_MB)
    yield from (states, restarts, resident, device)
    losses = CounterMetricFamily("pillion_worker_losses", "Lost workers, by cause.", labels=["policy", "cause"])
    for policy in supervisor.policies:
        for cause in LossCause:
            losses.add_metric([policy, cause.value], supervisor.workers.losses[policy, cause])
    yield losses
