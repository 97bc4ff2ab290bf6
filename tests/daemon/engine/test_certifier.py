"""The certifier finds out whether the batch changes a policy's answers; strict execution makes every policy exact."""

from __future__ import annotations

import pytest

from pillion_artifacts import Artifact, Store
from pilliond.engine.certifier import certify
from pilliond.engine.interface import EngineError
from pilliond.engine.onnx import OnnxEngine
from pilliond.ipc.batch_certificate import Certificate
from tests.daemon.support.policies.batch_sensitive import (
    LARGE_WIDTH,
    one_operator_model,
    publish_batch_mean,
    publish_rounded,
)
from tests.harness import STORE

ROWS_MAX = 32


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("batch-sensitive")
    publish_rounded(root)
    publish_rounded(root, "large", LARGE_WIDTH)
    publish_batch_mean(root)
    return Store(root)


def certificate_of(artifact: Artifact, strict_rows: int = 0) -> Certificate:
    """Loads a policy into an engine and certifies it; 0 strict rows: in buckets."""
    spec = artifact.card.spec()
    engine = OnnxEngine(artifact.model, spec, [], ROWS_MAX, states=artifact.card.state, strict_rows=strict_rows)
    engine.warm_up()
    return certify(engine, spec, artifact.card.state, None, ROWS_MAX)


@pytest.mark.parametrize("policy", Store(STORE).policies())
def test_a_batch_changes_the_shipped_policies_by_at_most_a_rounding(policy: str) -> None:
    certificate = certificate_of(Store(STORE).load(policy))
    assert certificate.batch in ("exact", "within 1e-6")
    assert (certificate.observations, certificate.buckets) == (64, [1, 2, 4, 8, 16, 32])


@pytest.mark.parametrize("policy", ["rounded", "large"])
def test_a_policy_that_rounds_differently_in_a_batch_is_exact_only_with_strict_execution(
    policy: str, store: Store
) -> None:
    in_buckets = certificate_of(store.load(policy))
    assert (in_buckets.batch, in_buckets.strict_rows) == ("within 1e-6", 0)
    assert 0 < in_buckets.difference <= 1e-6
    strict = certificate_of(store.load(policy), strict_rows=1)
    assert (strict.batch, strict.difference, strict.strict_rows) == ("exact", 0.0, 1)


def test_a_policy_whose_rows_depend_on_each_other_is_exact_only_if_each_row_runs_alone(
    store: Store,
) -> None:
    batch_mean = store.load("batch-mean")
    assert certificate_of(batch_mean).batch == "worse"
    # The rows that pad the batch to a fixed shape hold old numbers, which change the mean.
    assert certificate_of(batch_mean, strict_rows=4).batch == "worse"
    assert certificate_of(batch_mean, strict_rows=1).batch == "exact"


@pytest.mark.parametrize("strict_rows", [1, 16, 64])
def test_strict_execution_is_exact_with_any_number_of_strict_rows(strict_rows: int) -> None:
    assert certificate_of(Store(STORE).load("highway-fast"), strict_rows).batch == "exact"


def test_a_certificate_meets_every_gate_up_to_its_own() -> None:
    def certificate(batch: str) -> Certificate:
        return Certificate(batch, 0.0, 64, "golden pairs", [1])

    gates = ("any", "within 1e-6", "exact")
    assert [certificate("exact").meets(gate) for gate in gates] == [True, True, True]
    assert [certificate("within 1e-6").meets(gate) for gate in gates] == [True, True, False]
    assert [certificate("worse").meets(gate) for gate in gates] == [True, False, False]
    assert certificate("worse").shortfall("any") == ""
    assert certificate("worse").shortfall("exact").startswith("batch certificate: expected exact, got worse: ")


def test_a_non_finite_output_is_refused(store: Store) -> None:
    spec = store.load("rounded").card.spec()
    engine = OnnxEngine(one_operator_model("Log", 13), spec, [], ROWS_MAX)
    with pytest.raises(EngineError, match="output 'action': expected finite numbers, got a NaN or an infinity"):
        certify(engine, spec, [], None, ROWS_MAX)
