"""The metrics of each version as Triton's statistics extension."""

from __future__ import annotations

from collections.abc import Iterable

from pilliond.admin.kserve.messages import Duration, InferenceStatistics, ModelStatistics, Statistics
from pilliond.ipc.metrics_page import VERSION_CELLS, Histogram, MetricsPage
from pilliond.ipc.sealed_version import SealedVersion


def statistics_of(versions: Iterable[SealedVersion], page: MetricsPage) -> Statistics:
    """Returns the statistics of loaded versions."""
    return Statistics([_of(version, page) for version in versions])


def _of(version: SealedVersion, page: MetricsPage) -> ModelStatistics:
    version_cells, cells = VERSION_CELLS[version.metrics_index], page.cells
    runs = _duration(version_cells.inference_duration, page)
    return ModelStatistics(
        name=version.policy,
        version=version.version,
        inference_count=cells[version_cells.rows],
        execution_count=runs.count,
        inference_stats=InferenceStatistics(
            success=_duration(version_cells.request_duration, page),
            fail=Duration(cells[version_cells.failures] + cells[version_cells.late], 0),
            compute_infer=runs,
        ),
    )


def _duration(histogram: Histogram, page: MetricsPage) -> Duration:
    count = sum(page.cells[histogram.first : histogram.sum_cell])
    return Duration(count, page.cells[histogram.sum_cell])
