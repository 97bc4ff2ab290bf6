"""`pillion bench frames`: real daemons, one for each size and path."""

from __future__ import annotations

from typing import Any

import pytest

from pillion_bench.measurements.frame_tables import print_frames
from pillion_bench.measurements.frames import FrameOptions
from pillion_protocol.limits import SLOT_BYTES_MIN, TENSOR_BYTES_MAX
from tests.bench.conftest import report_of


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """A size that fits a packet alone, one that can go both ways, and one that fits a slot alone."""
    return report_of("frames", "--sizes", "1000,20000,1400000", "--seconds", "0.05", "--repeat", "1")


def test_every_size_goes_every_way_that_it_can(measured: dict[str, Any]) -> None:
    ways = [(row["bytes"], row["path"]) for row in measured["rows"]]
    assert ways == [(1000, "packet"), (20000, "slot"), (20000, "packet"), (1400000, "slot")]
    assert measured["n"] == sum(row["n"] for row in measured["rows"])
    assert all(row["n"] > 0 for row in measured["rows"])


def test_a_row_stands_beside_its_copy_and_its_ping_pong(measured: dict[str, Any]) -> None:
    for row in measured["rows"]:
        bound_us = row["copy_us"] + row["ping_pong_us"]
        assert row["carrier_over_copy_and_ping_pong"] == pytest.approx(row["carrier_us"]["p50"] / bound_us, abs=1e-3)
    copies_us = [row["copy_us"] for row in measured["rows"]]
    assert copies_us[-1] > copies_us[0]


def test_the_ways_end_where_the_protocol_says() -> None:
    edges = [SLOT_BYTES_MIN - 1, SLOT_BYTES_MIN, TENSOR_BYTES_MAX, TENSOR_BYTES_MAX + 1]
    options = FrameOptions(edges)
    assert [options.paths(size) for size in edges] == [["packet"], ["slot", "packet"], ["slot", "packet"], ["slot"]]
    assert options.measurements == 6 * options.repeat


def test_the_table_has_a_line_for_each(measured: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    print_frames(measured)
    printed = capsys.readouterr().out
    assert "1,400,000" in printed
    assert "slots from 16,384 bytes on" in printed
