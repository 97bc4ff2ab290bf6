"""`pillion bench switch` alternates versions under load, and checks every answer against the version it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pillion_artifacts import Store
from pillion_bench.errors import ActionMismatchError
from pillion_bench.measurements.switch import (
    AROUND_S,
    SwitchLog,
    SwitchOptions,
    TimeWindow,
    expected_outputs,
    gaps_us,
    report,
)
from pillion_bench.measurements.switch_tables import print_switch
from pillion_bench.process.placement import parse_placement
from pillion_bench.roles.switch_driver import OBSERVATIONS, SwitchResult
from pillion_bench.variants import publish_variant
from tests.bench.conftest import report_of

QUICK = ("switch", "--switches", "3", "--sessions", "2", "--before", "0.5", "--pin", "none")


@pytest.fixture(scope="module")
def switched() -> dict[str, Any]:
    return report_of(*QUICK)


def test_no_answer_fails_and_each_is_that_of_the_version_it_names(switched: dict[str, Any]) -> None:
    assert (switched["failed"], switched["wrong"], switched["mixed"], switched["doubled"]) == (0, 0, 0, 0)
    assert sum(switched["acts_of_version"].values()) == switched["acts"]
    assert all(count > 0 for count in switched["acts_of_version"].values())
    assert switched["episodes"] > switched["sessions"]


def test_only_the_first_switch_stages_if_both_versions_stay_loaded(switched: dict[str, Any]) -> None:
    assert (switched["switches"], switched["staged"], switched["load_ms"]["n"]) == (3, 1, 1)
    assert (switched["switch_effect_ms"]["n"], switched["rollback_effect_ms"]["n"]) == (2, 10)


def test_with_three_versions_each_switch_stages_one() -> None:
    restaged = report_of(*QUICK, "--restage")
    assert (restaged["switches"], restaged["staged"], restaged["load_ms"]["n"]) == (3, 3, 3)
    assert (restaged["failed"], restaged["wrong"], restaged["mixed"]) == (0, 0, 0)


def test_the_table_has_the_counts_of_wrong_answers(
    switched: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    print_switch(switched)
    assert "0 wrong, 0 mixed, 0 failed, 0 doubled" in capsys.readouterr().out


def test_the_two_versions_answer_differently_to_every_observation(tmp_path: Path) -> None:
    answers = []
    for number, version in enumerate(("1.0.0", "1.1.0")):
        publish_variant(tmp_path, version, number * 100.0)
        (outputs,) = expected_outputs(Store(tmp_path), version).values()
        assert len(outputs) == OBSERVATIONS
        answers.append(outputs)
    assert all(one != other for one, other in zip(*answers, strict=True))


def test_a_wrong_answer_fails_the_bench() -> None:
    result = SwitchResult(b"", b"", {}, 1, wrong=1, mixed=0, refused=0, doubled=0)
    with pytest.raises(ActionMismatchError, match="1 answers are not those"):
        report(SwitchLog(TimeWindow(0, 1)), result, SwitchOptions(), parse_placement("none"))


def test_the_gap_of_a_switch_is_the_pause_that_contains_it_and_the_longest_around_it() -> None:
    around_us = AROUND_S * 1e6
    came_us = np.arange(0, 10 * around_us, 100)
    came_us[came_us > 5 * around_us] += 700
    received_ns = (came_us * 1_000).astype(np.int64)
    moments_ns = [round((at * around_us + 50) * 1_000) for at in (2, 5, 5.5)]
    gaps = gaps_us(received_ns, moments_ns, AROUND_S)
    assert (gaps["n"], gaps["worst"], gaps["median"]) == (3, 800.0, 800.0)
    gaps = gaps_us(received_ns, moments_ns, 0.0)
    assert (gaps["n"], gaps["worst"], gaps["median"]) == (3, 800.0, 100.0)
