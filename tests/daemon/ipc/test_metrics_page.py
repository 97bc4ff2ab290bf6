"""The service times on the metrics page: each version has cells of its own, and an index that is used again begins empty."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pilliond.ipc.metrics_page import MetricsPage, make_page
from pilliond.limits import SERVICE_BUCKETS_MAX


@pytest.fixture
def page() -> Iterator[MetricsPage]:
    descriptor = make_page()
    page = MetricsPage(descriptor)
    yield page
    page.close()
    os.close(descriptor)


def test_each_version_has_service_times_of_its_own_until_its_index_is_cleared(page: MetricsPage) -> None:
    page.set_service_times(1, [(1, 5, 9), (2, 0, 0), (4, 7, 8)])
    page.set_service_times(2, [(1, 3, 3)])
    # Nothing ran in the bucket of two rows.
    assert page.service_times(1) == [(1, 5, 9), (4, 7, 8)]
    page.clear(1)
    assert (page.service_times(1), page.service_times(2)) == ([], [(1, 3, 3)])


def test_more_buckets_than_there_are_cells_leave_the_cells_behind_them_alone(page: MetricsPage) -> None:
    page.set_service_times(2, [(1, 3, 3)])
    page.set_service_times(1, [(rows, rows, rows) for rows in range(1, 3 * SERVICE_BUCKETS_MAX)])
    assert [rows for rows, _, _ in page.service_times(1)] == list(range(1, SERVICE_BUCKETS_MAX + 1))
    assert page.service_times(2) == [(1, 3, 3)]
