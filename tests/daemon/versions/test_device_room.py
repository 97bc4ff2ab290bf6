"""A version that does not fit into the memory of its device is refused with both numbers."""

from __future__ import annotations

import pytest

from pilliond.engine.worker_messages import DeviceMemory
from pilliond.versions.device_room import why_no_room

MB = 1_000_000


@pytest.mark.parametrize(
    ("used", "free", "budget_mb", "workers", "why"),
    [
        (300 * MB, 1_000 * MB, 0, 1, ""),
        (300 * MB, 1_000 * MB, 300, 1, ""),
        (300 * MB + 1, 1_000 * MB, 300, 1, "engine.device_memory_mb: expected at most 300, it took 301 MB of cuda:0"),
        (300 * MB, 300 * MB, 0, 1, ""),
        (
            300 * MB,
            300 * MB - 1,
            0,
            1,
            "it does not fit on cuda:0 beside what is there: it needs 300 MB, 299 MB were free",
        ),
        (300 * MB, 900 * MB, 0, 3, ""),
        (
            300 * MB,
            899 * MB,
            0,
            3,
            "it does not fit on cuda:0 beside what is there: it needs 3 workers of 300 MB each, 899 MB were free",
        ),
    ],
)
def test_it_fits_within_its_budget_and_beside_what_is_there(
    used: int, free: int, budget_mb: int, workers: int, why: str
) -> None:
    taken = [DeviceMemory("cuda:1", 1, 2_000 * MB, 2_000 * MB), DeviceMemory("cuda:0", used, free, 2_000 * MB)]
    assert why_no_room(taken, budget_mb, workers) == why


def test_what_was_not_measured_is_not_judged() -> None:
    assert why_no_room([], 1) == ""
