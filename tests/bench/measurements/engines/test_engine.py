"""`pillion bench engine` measures an engine in a worker beside an inline one and a bare doorbell, with real daemons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pillion_bench.measurements.engines.crossing import added_over_doorbell, kinds_of
from pillion_bench.measurements.engines.engine import EngineOptions, parts_of
from pillion_bench.measurements.engines.series import Series, order
from pillion_bench.measurements.engines.subjects import ONNX
from pillion_bench.measurements.engines.tables import print_engine
from pillion_bench.measurements.engines.worker_kill import Kill, report_kills
from pillion_bench.roles.steady_driver import SteadyResult
from tests.bench.conftest import report_of, run_pillion

KINDS = kinds_of(ONNX)


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """One short round of every part."""
    return report_of("engine", "--seconds", "0.2", "--rounds", "1", "--also", "all", "--model-mb", "5")


def test_every_kind_has_its_percentiles_and_its_count(measured: dict[str, Any]) -> None:
    for kind in KINDS:
        figures = measured[f"{kind}_us"]
        assert figures["n"] > 0
        assert 0 < figures["p50"] <= figures["p99"]
        assert len(measured["p50_us_of_segments"][kind]) == 2
    assert measured["n"] == sum(measured[f"{kind}_us"]["n"] for kind in KINDS)


def test_the_ratio_is_what_a_worker_adds_over_the_doorbell(measured: dict[str, Any]) -> None:
    for kind in ("worker", "worker_asleep", "worker_spinning"):
        added_us = measured[f"{kind}_us"]["p50"] - measured["inline_us"]["p50"]
        assert measured["added_us"][kind] == pytest.approx(added_us, abs=0.01)
        ratio = added_us / measured["doorbell_us"]["p50"]
        assert measured["added_over_doorbell"][kind] == pytest.approx(ratio, abs=1e-3)
        assert len(measured["added_over_doorbell_of_rounds"][kind]) == 1


def test_the_report_says_where_the_three_processes_ran(measured: dict[str, Any]) -> None:
    assert "client and serving process on cpu" in measured["pin"] or "not pinned" in measured["pin"]


def test_a_round_runs_forwards_and_backwards() -> None:
    assert list(order(("a", "b"), 2)) == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_the_noise_of_a_kind_is_the_largest_difference_within_a_round() -> None:
    series = Series()
    series.segments_ns = [np.full(100, microseconds * 1_000) for microseconds in (100, 100, 100, 300)]
    assert series.p50s_us_of_rounds() == pytest.approx([100, 200], rel=1e-2)
    assert series.noise() == pytest.approx(1.0, rel=1e-2)


def test_without_a_doorbell_there_is_no_ratio() -> None:
    assert added_over_doorbell(50.0, 20.0, 20.0) == 1.5
    assert added_over_doorbell(50.0, 20.0, 0.0) == 0.0


def test_rows_are_counted_for_the_worker_and_for_the_bare_engine(measured: dict[str, Any]) -> None:
    part = measured["rows"]
    assert part["rows_per_s"].keys() == part["noise"].keys() == {"bare", "worker", "worker_depth_2"}
    assert all(rate > 0 for rate in part["rows_per_s"].values())
    assert part["over_bare"].keys() == {"worker", "worker_depth_2"}
    for kind, ratio in part["over_bare"].items():
        assert ratio == pytest.approx(part["rows_per_s"][kind] / part["rows_per_s"]["bare"], abs=1e-3)


def test_an_inline_policy_is_measured_alone_and_beside_a_busy_worker(measured: dict[str, Any]) -> None:
    part = measured["beside"]
    assert part["n"] == part["alone_us"]["n"] + part["beside_us"]["n"]
    assert min(part["alone_us"]["n"], part["beside_us"]["n"], part["busy_acts"]) > 0
    assert part["beside_over_alone"].keys() == part["noise"].keys() == {"p50", "p90", "p99", "p99.9"}


def test_a_killed_worker_comes_back_and_no_other_policy_loses_an_act(measured: dict[str, Any]) -> None:
    part = measured["kill"]
    assert len(part["first_action_ms"]) == part["kills"] == 1
    assert None not in part["first_action_ms"]
    assert part["other_refused"] == {}
    assert min(part["acts"], part["other_acts"], part["other_before_us"]["n"], part["other_while_away_us"]["n"]) > 0


def test_the_daemons_copy_is_measured_for_each_size_of_slot(measured: dict[str, Any]) -> None:
    part = measured["slots"]
    assert [row["bytes"] for row in part["rows"]] == [84 * 84 * 4, 1_400_000]
    assert all(row["n"] > 0 for row in part["rows"])
    share = part["rows"][0]["daemon_copy_us"] / part["image_round_trip_us"]["p50"]
    assert part["stack_share_of_image_round_trip"] == pytest.approx(share, abs=1e-3)


def test_an_act_is_measured_inline_and_from_the_result_cache(measured: dict[str, Any]) -> None:
    part = measured["cache"]
    assert part["n"] == part["inline_us"]["n"] + part["cached_us"]["n"]
    # Nearly all are found: a driver on a busy machine may count some of its first acts.
    assert 0.9 * part["cached_us"]["n"] <= part["hits"] <= part["cached_us"]["n"]
    ratio = part["cached_us"]["p50"] / part["inline_us"]["p50"]
    assert part["cached_over_inline"] == pytest.approx(ratio, abs=1e-3)


def test_a_worker_of_another_interpreter_is_measured_beside_one_of_the_daemons(measured: dict[str, Any]) -> None:
    part = measured["interpreter"]
    assert part["n"] == part["own_us"]["n"] + part["foreign_us"]["n"]
    ratio = part["foreign_us"]["p50"] / part["own_us"]["p50"]
    assert part["foreign_over_own"] == pytest.approx(ratio, abs=1e-3)
    assert len(part["foreign_over_own_of_rounds"]) == 1


def test_a_start_and_a_switch_are_measured_over_loading_by_hand(measured: dict[str, Any]) -> None:
    part = measured["start"]
    assert part["model_bytes"] == pytest.approx(5e6, rel=0.05)
    by_hand = part["by_hand_s"]
    assert by_hand["process"] > by_hand["import"] + by_hand["read"] + by_hand["hash"] + by_hand["load"]
    assert part["start_s"] > part["publish_s"]
    for kind in ("start", "switch"):
        assert part["over_by_hand"][kind] == pytest.approx(part[f"{kind}_s"] / by_hand["process"], rel=1e-2)
        assert part["over_read_hash_load"][kind] > part["over_by_hand"][kind]
    assert min(part["cpu_s"].values()) > 0


def test_the_table_has_a_line_for_each_part(measured: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    print_engine(measured)
    printed = capsys.readouterr().out
    for text in (
        "x a bare doorbell",
        "rows/s through a worker",
        "beside / alone",
        "worker killed",
        "bytes in a slot",
        "x inline at p50",
        "x one in the daemon's own",
        "from publish until it serves",
    ):
        assert text in printed


def test_the_number_of_segments_follows_the_options() -> None:
    assert EngineOptions(rounds=2).segments == 20
    assert EngineOptions(rounds=2, also=parts_of(ONNX)).segments == 20 + 12 + 8 + 2 + 7 + 8 + 8 + 6


def test_an_unknown_part_is_refused_with_those_that_there_are() -> None:
    done = run_pillion("bench", "engine", "--also", "rows,nothing")
    assert done.returncode == 64
    assert "expected some of rows, beside, kill, slots, cache, interpreter, start, or all; got 'nothing'" in done.stderr


def test_the_first_action_is_that_of_a_batch_after_the_worker_was_gone() -> None:
    # Sent and received in ms after the kill. The second action was computed before it, and arrived after it.
    kill = Kill(0, 2_000_000, _steady((-9, -8), (-2, 3), (1, 400)), _steady((-5, -4), (10, 11)))
    assert kill.first_action_ns() == 400_000_000
    report = report_kills([kill], 1.0)
    assert report["first_action_ms"] == [400.0]
    assert report["other_before_us"]["n"] == report["other_while_away_us"]["n"] == 1


def test_a_version_that_does_not_come_back_has_no_first_action() -> None:
    kill = Kill(0, 2_000_000, _steady((-9, -8)), _steady((-5, -4), (10, 11)))
    assert report_kills([kill], 1.0)["first_action_ms"] == [None]


def _steady(*acts_ms: tuple[int, int]) -> SteadyResult:
    """Acts by their times of sending and of arrival. Each is dispatched 4 ms before its answer arrives."""
    sent_ns = np.array([sent for sent, _ in acts_ms], np.int64) * 1_000_000
    received_ns = np.array([received for _, received in acts_ms], np.int64) * 1_000_000
    dispatched_ns = received_ns - 4_000_000
    return SteadyResult(sent_ns.tobytes(), received_ns.tobytes(), dispatched_ns.tobytes(), {})
