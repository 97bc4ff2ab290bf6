"""Golden pairs that no session could send are refused before anything runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pillion_artifacts.card.golden_pairs import Golden, encode_golden
from pillion_artifacts.card.model_card import Tolerance
from pilliond.engine.interface import EngineError
from pilliond.engine.onnx import OnnxEngine
from pilliond.engine.parity import check_parity
from tests.daemon.support.policies.graphs import ENTRIES, SPEC, table_model


def check(*numbers: int) -> None:
    observations = np.array(numbers, np.int64)
    golden = Golden({"observation": observations}, {"action": observations.astype(np.float32) / 2})
    check_parity(OnnxEngine(table_model(), SPEC, [], 4), SPEC, [], encode_golden(golden), Tolerance(), 4)


def test_each_replica_that_is_ready_must_give_the_golden_answers() -> None:
    observations = np.array([1, 2], np.int64)
    golden = encode_golden(Golden({"observation": observations}, {"action": observations.astype(np.float32) / 2}))
    good, other = (OnnxEngine(table_model(), SPEC, [], 4) for _ in range(2))

    def check_both(engine: Any) -> None:
        check_parity(engine, SPEC, [], golden, Tolerance(), 4)

    several = SimpleNamespace(replicas=[good, other])
    check_both(several)
    ran = other.runs[2]

    def run_wrongly() -> None:
        ran()
        other.outputs["action"] += 1

    other.runs = [run_wrongly] * 5
    with pytest.raises(EngineError, match="action"):
        check_both(several)
    other.is_ready = False
    check_both(several)


def test_golden_pairs_within_the_bounds_are_run() -> None:
    check(0, 3, ENTRIES - 1)


def test_a_golden_observation_out_of_its_bounds_is_named() -> None:
    with pytest.raises(EngineError, match="golden pairs: observation 'observation': expected 0 to 15, got 16 in row 2"):
        check(0, 3, ENTRIES)
