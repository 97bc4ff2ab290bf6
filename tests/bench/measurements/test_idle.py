"""`pillion bench idle` measures an active session with and without idle ones beside it."""

from __future__ import annotations

from typing import Any

import pytest

from pillion_bench.measurements.idle_tables import print_idle
from tests.bench.conftest import report_of


@pytest.fixture(scope="module")
def idle() -> dict[str, Any]:
    """One round, with a few idle sessions."""
    return report_of("idle", "--sessions", "30", "--rounds", "1", "--seconds", "0.3", "--carrier", "lane")


def test_a_round_is_alone_crowded_crowded_alone(idle: dict[str, Any]) -> None:
    assert len(idle["added_us_p50_of_segments"]) == 4
    assert all(idle[part]["n"] > 0 for part in ("alone", "crowded"))
    assert idle["n"] == idle["alone"]["n"] + idle["crowded"]["n"]


def test_the_processor_time_is_a_share_of_one_core(idle: dict[str, Any]) -> None:
    assert idle["cpu_share"].keys() == {"alone", "crowded"}
    assert all(0 <= share < 1 for share in idle["cpu_share"].values())


def test_the_table_has_the_number_of_idle_sessions(idle: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    print_idle(idle)
    printed = capsys.readouterr().out
    assert "beside 30 idle sessions" in printed
    assert "of a core" in printed
