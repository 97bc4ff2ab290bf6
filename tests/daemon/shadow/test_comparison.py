"""The distance of two answers, and when they agree."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from pillion_artifacts.card.model_card import Tolerance
from pillion_protocol import Spec, TensorSpec
from pilliond.ipc import shadow_page as cell
from pilliond.ipc.shadow_page import ShadowPage, make_shadow_page
from pilliond.shadow.comparison import Comparison, distances
from pilliond.shadow.report import compared_outputs, distance_buckets

SPEC = Spec([TensorSpec("observation", "float32", [2])], [TensorSpec("action", "float32", [2])])
THRUSTS = Spec(
    SPEC.observation, [TensorSpec("action", "int64", [2], "MultiDiscrete"), TensorSpec("value", "float64", [])]
)


@pytest.fixture
def page() -> Iterator[ShadowPage]:
    descriptor = make_shadow_page(4_096)
    page = ShadowPage(descriptor)
    yield page
    page.close()
    os.close(descriptor)


def test_the_same_bits_are_not_apart_and_what_is_not_finite_on_one_side_is_infinitely_so() -> None:
    nan, infinity = np.nan, np.inf
    sent = np.array([[3, 4], [nan, 1], [infinity, 1], [nan, 0], [1, 1], [infinity, 0]], np.float32)
    other = np.array([[0, 0], [nan, 1], [infinity, 1], [0, 0], [1, nan], [-infinity, 0]], np.float32)
    assert distances(sent, other).tolist() == [5.0, 0.0, 0.0, infinity, infinity, infinity]
    assert distances(np.zeros((2, 1), bool), np.ones((2, 1), bool)).tolist() == [1.0, 1.0]


def test_continuous_actions_agree_within_the_tolerance_or_a_distance_that_was_set(page: ShadowPage) -> None:
    sent = np.array([[100.0, 0.0], [100.0, 0.0], [1.0, 0.0]], np.float32)
    other = np.array([[100.5, 0.0], [102.0, 0.0], [1.5, 0.0]], np.float32)
    Comparison(SPEC, Tolerance(absolute=0.0, relative=0.01), 0.0, page).add([sent], [other])
    assert (page.cells[cell.ROWS], page.cells[cell.AGREED_ROWS]) == (3, 1)
    Comparison(SPEC, Tolerance(absolute=0.0, relative=0.01), 0.5, page).add([sent], [other])
    assert (page.cells[cell.ROWS], page.cells[cell.AGREED_ROWS]) == (6, 3)
    (action,) = compared_outputs(page.counts(), SPEC)
    assert (action.distance_mean, action.distance_max) == (1.0, 2.0)
    buckets, total = distance_buckets(page.counts())
    assert (dict(buckets)["0.3"], dict(buckets)["1"], dict(buckets)["+Inf"], total) == (0, 4, 6, 6.0)


def test_discrete_actions_agree_where_all_of_a_row_is_equal_and_have_no_distance(page: ShadowPage) -> None:
    sent = [np.array([[1, 2], [1, 2], [3, 3]]), np.array([0.0, 1.0, 2.0])]
    other = [np.array([[1, 2], [1, 3], [3, 3]]), np.array([0.0, 1.0, np.nan])]
    Comparison(THRUSTS, Tolerance(), 0.0, page).add(sent, other)
    action, value = compared_outputs(page.counts(), THRUSTS)
    assert (action.agreed_rows, action.distance_mean, action.distance_max) == (2, None, None)
    assert (value.agreed_rows, value.distance_mean, value.distance_max) == (2, 0.0, None)
    assert (page.cells[cell.AGREED_ROWS], page.cells[cell.NON_FINITE_ROWS]) == (2, 1)
    assert distance_buckets(page.counts())[0][-1] == ("+Inf", 0)
