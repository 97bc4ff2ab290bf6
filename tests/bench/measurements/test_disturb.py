"""`pillion bench disturb` interleaves a quiet daemon and a scraped one under the same load."""

from __future__ import annotations

from typing import Any

import pytest

from pillion_bench.measurements.disturb import verdict
from pillion_bench.measurements.disturb_tables import print_disturb
from pillion_bench.process.placement import Placement, spare_cpus
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


def test_the_disturbed_daemon_is_scraped_and_answers(disturbed: dict[str, Any]) -> None:
    assert disturbed["scrapes"] == disturbed["health_checks"] > 2
    assert disturbed["refused"] == 0
    assert disturbed["log_lines"] > 0


def test_each_percentile_has_a_verdict(disturbed: dict[str, Any]) -> None:
    for key in ("noise", "effect", "verdict"):
        assert disturbed[key].keys() == PERCENTILES
    for name in PERCENTILES:
        assert disturbed["verdict"][name] == verdict(disturbed["effect"][name], disturbed["noise"][name])


def test_the_table_ends_with_the_verdicts(disturbed: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    print_disturb(disturbed)
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith(f"p99: {disturbed['verdict']['p99']} (")
    assert "A/A noise" in printed


@pytest.mark.parametrize(
    ("effect", "noise", "word"),
    [
        (0.1, 0.2, "within the noise"),
        (-0.3, 0.2, "within the noise"),
        (0.3, 0.2, "beyond the noise"),
        (0.3, 0.6, "undecided"),
    ],
)
def test_a_verdict_needs_little_noise(effect: float, noise: float, word: str) -> None:
    assert verdict(effect, noise) == word


def test_the_scraper_runs_on_spare_cpus_if_there_are_any() -> None:
    apart = Placement("0:1", frozenset({0}), frozenset({1}))
    assert spare_cpus(apart, frozenset({0, 1, 2, 3})) == frozenset({2, 3})
    assert spare_cpus(apart, frozenset({0, 1})) == frozenset({1})
    assert spare_cpus(Placement("none", None, None)) is None
