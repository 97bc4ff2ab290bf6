"""`pillion bench disturb`: a quiet daemon and one that is asked all the time, under the same load, in turns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pillion_bench.measurements.disturb import Segment, compare_segments, verdict
from pillion_bench.measurements.disturb_tables import print_disturb
from pillion_bench.process.placement import Placement, bystander
from tests.bench.conftest import report_of

QUICK = ("disturb", "--rounds", "1", "--speed", "0.8", "--sessions", "2")
PERCENTILES = {"p50", "p90", "p99", "p99.9"}


@pytest.fixture(scope="module")
def disturbed() -> dict[str, Any]:
    """One round."""
    return report_of(*QUICK)


def test_a_round_is_quiet_disturbed_disturbed_quiet(disturbed: dict[str, Any]) -> None:
    assert [segment["daemon"] for segment in disturbed["segments"]] == ["quiet", "disturbed", "disturbed", "quiet too"]
    acts = {segment["n"] for segment in disturbed["segments"]}
    assert len(acts) == 1
    assert disturbed["quiet"]["n"] == disturbed["disturbed"]["n"] == 2 * acts.pop()
    assert disturbed["n"] == sum(segment["n"] for segment in disturbed["segments"])


def test_the_disturbed_daemon_is_asked_and_answers(disturbed: dict[str, Any]) -> None:
    assert disturbed["scrapes"] == disturbed["health_checks"] > 2
    assert disturbed["refused"] == 0
    assert disturbed["log_lines"] > 0


def test_each_percentile_has_a_verdict(disturbed: dict[str, Any]) -> None:
    for key in ("noise", "effect", "verdict"):
        assert disturbed[key].keys() == PERCENTILES
    for name in PERCENTILES:
        assert disturbed["verdict"][name] == verdict(disturbed["effect"][name], disturbed["noise"][name])


def test_the_table_ends_with_the_verdict(disturbed: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    print_disturb(disturbed)
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith(f"p99: {disturbed['verdict']['p99']} (")
    assert "A/A noise" in printed


def of_round(*p50_us: float) -> list[Segment]:
    """A round whose segments have these latencies throughout."""
    names = ("quiet", "disturbed", "disturbed", "quiet too")
    values = [np.full(100, round(value * 1_000), np.int64) for value in p50_us]
    return [Segment(name, added_ns, None) for name, added_ns in zip(names, values, strict=True)]


def test_noise_is_the_largest_difference_between_quiet_segments_of_a_round() -> None:
    noise, effect = compare_segments(of_round(100, 105, 105, 110) + of_round(200, 200, 200, 200))
    assert noise["p50"] == pytest.approx(10 / 105, abs=0.001)
    assert effect["p50"] == pytest.approx(0.0, abs=0.001)


def test_the_effect_is_the_typical_round_s() -> None:
    rounds = of_round(100, 130, 130, 100) + of_round(100, 120, 120, 100) + of_round(100, 900, 900, 100)
    noise, effect = compare_segments(rounds)
    assert noise["p50"] == 0.0
    assert effect["p50"] == pytest.approx(0.3, abs=0.005)


@pytest.mark.parametrize(
    ("effect", "noise", "word"),
    [
        (0.1, 0.2, "within the noise"),
        (-0.3, 0.2, "within the noise"),
        (0.3, 0.2, "beyond the noise"),
        (0.3, 0.6, "undecided"),
    ],
)
def test_a_verdict_needs_a_machine_that_is_like_itself(effect: float, noise: float, word: str) -> None:
    assert verdict(effect, noise) == word


def test_the_scraper_keeps_away_where_there_is_room() -> None:
    apart = Placement("0:1", frozenset({0}), frozenset({1}))
    assert bystander(apart, frozenset({0, 1, 2, 3})) == frozenset({2, 3})
    assert bystander(apart, frozenset({0, 1})) == frozenset({1})
    assert bystander(Placement("none", None, None)) is None
