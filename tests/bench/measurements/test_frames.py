"""`pillion bench frames` measures each size on each path, with a real daemon for each."""

from __future__ import annotations

from typing import Any

import pytest

from pillion_bench.measurements.frame_tables import print_frames
from pillion_bench.measurements.frames import FrameOptions
from pillion_protocol.limits import SLOT_BYTES_MIN, TENSOR_BYTES_MAX
from tests.bench.conftest import report_of


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """A size for packets only, one for both paths, and one for slots only."""
    return report_of("frames", "--sizes", "1000,20000,1400000", "--seconds", "0.05", "--repeat", "1")


def test_every_size_is_measured_on_every_path_that_it_can_take(measured: dict[str, Any]) -> None:
    paths = [(row["bytes"], row["path"]) for row in measured["rows"]]
    assert paths == [(1000, "packet"), (20000, "slot"), (20000, "packet"), (1400000, "slot")]
    assert measured["n"] == sum(row["n"] for row in measured["rows"])
    assert all(row["n"] > 0 for row in measured["rows"])


def test_a_row_has_the_ratio_to_its_copy_and_its_ping_pong(measured: dict[str, Any]) -> None:
    for row in measured["rows"]:
        bound_us = row["copy_us"] + row["ping_pong_us"]
        assert row["carrier_over_copy_and_ping_pong"] == pytest.approx(row["carrier_us"]["p50"] / bound_us, abs=1e-3)
    copies_us = [row["copy_us"] for row in measured["rows"]]
    assert copies_us[-1] > copies_us[0]


def test_the_paths_of_a_size_follow_the_limits_of_the_protocol() -> None:
    edges = [SLOT_BYTES_MIN - 1, SLOT_BYTES_MIN, TENSOR_BYTES_MAX, TENSOR_BYTES_MAX + 1]
    options = FrameOptions(edges)
    assert [options.paths(size) for size in edges] == [["packet"], ["slot", "packet"], ["slot", "packet"], ["slot"]]
    assert options.measurements == 6 * options.repeat


def test_the_table_has_a_line_for_each_size(measured: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    print_frames(measured)
    printed = capsys.readouterr().out
    assert "1,400,000" in printed
    assert "slots from 16,384 bytes on" in printed
