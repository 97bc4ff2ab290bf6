"""`pillion bench budget` sends acts with a budget to a busy policy, and counts what becomes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pillion_bench.measurements.engines.budget import BudgetOptions, report, signed_percentiles_us
from pillion_bench.measurements.engines.tables import print_budget
from pillion_bench.process.placement import parse_placement
from pillion_bench.roles.budget_driver import BudgetResult
from pillion_bench.roles.steady_driver import SteadyResult
from tests.bench.conftest import report_of

ACTS = 40


@pytest.fixture(scope="module")
def hopeless() -> dict[str, Any]:
    """A budget that no run of the policy fits into."""
    return report_of("budget", "--acts", str(ACTS), "--budget-ms", "2", "--run-ms", "15")


@pytest.fixture(scope="module")
def ample() -> dict[str, Any]:
    """A budget of many runs."""
    return report_of("budget", "--acts", str(ACTS), "--budget-ms", "2000", "--run-ms", "5", "--pause-ms", "0")


@pytest.mark.parametrize("measured", ["hopeless", "ample"])
def test_every_act_is_answered_or_refused(measured: str, request: pytest.FixtureRequest) -> None:
    counts = request.getfixturevalue(measured)
    assert counts["acts"] == ACTS == counts["answered"] + sum(counts["refused"].values())
    assert counts["refusal_us"]["n"] == sum(counts["refused"].values())
    assert counts["answered_in_time"] <= counts["answered"]


@pytest.mark.parametrize("measured", ["hopeless", "ample"])
def test_no_act_is_dispatched_after_its_budget(measured: str, request: pytest.FixtureRequest) -> None:
    assert request.getfixturevalue(measured)["dispatched_late"] == 0


def test_acts_without_a_chance_are_refused_for_their_budget(hopeless: dict[str, Any]) -> None:
    assert hopeless["answered_in_time"] == 0
    assert hopeless["refused"].keys() <= {"deadline_exceeded"}


def test_acts_with_an_ample_budget_are_all_answered(ample: dict[str, Any]) -> None:
    assert ample["answered"] == ACTS
    assert ample["refusal_us"] == {"n": 0, "p50": None, "p99": None}


def test_the_other_clients_keep_the_policy_busy(hopeless: dict[str, Any]) -> None:
    assert hopeless["busy"]["acts"] > 0
    assert hopeless["busy"]["refused"] == {}


def test_a_refusal_before_the_end_of_the_budget_counts_as_negative() -> None:
    result = BudgetResult(1, 1, 0, {"deadline_exceeded": 2}, np.array([-5_000, 7_000], np.int64).tobytes())
    nobody = SteadyResult(b"", b"", b"", {})
    counts = report(result, nobody, BudgetOptions(acts=3), parse_placement("none"))
    assert counts["refused_before_the_end"] == 1
    assert counts["refusal_us"] == {"n": 2, "p50": 7.0, "p99": 7.0}
    assert counts["answered_in_time"] == 0


def test_percentiles_of_values_below_zero_keep_their_sign() -> None:
    values_ns = np.arange(-100_000, 0, 1_000)
    assert signed_percentiles_us(values_ns) == {"p50": -50.0, "p99": -1.0}
    assert signed_percentiles_us(values_ns[:0]) == {"p50": None, "p99": None}


def test_the_table_says_how_many_acts_were_dispatched_late(
    hopeless: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    print_budget(hopeless)
    assert f"{ACTS} acts with a budget of 2 ms" in capsys.readouterr().out
