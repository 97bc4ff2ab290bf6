"""The certifier tells policies whose answers the batch changes from those whose it does not, and strict makes them exact."""

from __future__ import annotations

import pytest

from pillion_artifacts import Artifact, Store
from pilliond.engine.certifier import certify
from pilliond.engine.interface import EngineError
from pilliond.engine.onnx import OnnxEngine
from pilliond.ipc.batch_certificate import Certificate
from tests.daemon.support.batch_sensitive_policies import LARGE_WIDTH, model_of, publish_rounded, publish_sociable
from tests.harness import STORE

ROWS_MAX = 32


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("touchy")
    publish_rounded(root)
    publish_rounded(root, "large", LARGE_WIDTH)
    publish_sociable(root)
    return Store(root)


def certificate_of(artifact: Artifact, strict_rows: int = 0) -> Certificate:
    spec = artifact.card.spec()
    engine = OnnxEngine(artifact.model, spec, [], ROWS_MAX, states=artifact.card.state, strict_rows=strict_rows)
    engine.warm_up()
    return certify(engine, spec, artifact.card.state, None, ROWS_MAX)


@pytest.mark.parametrize("policy", Store(STORE).policies())
def test_the_policies_that_ship_are_not_changed_by_more_than_a_rounding(policy: str) -> None:
    certificate = certificate_of(Store(STORE).load(policy))
    assert certificate.batch in ("exact", "within 1e-6")
    assert (certificate.observations, certificate.buckets) == (64, [1, 2, 4, 8, 16, 32])


@pytest.mark.parametrize("policy", ["rounded", "large"])
def test_a_policy_that_rounds_otherwise_in_a_batch_is_not_exact_until_it_is_run_strictly(
    policy: str, store: Store
) -> None:
    in_buckets = certificate_of(store.load(policy))
    assert (in_buckets.batch, in_buckets.strict_rows) == ("within 1e-6", 0)
    assert 0 < in_buckets.difference <= 1e-6
    strict = certificate_of(store.load(policy), strict_rows=1)
    assert (strict.batch, strict.difference, strict.strict_rows) == ("exact", 0.0, 1)


def test_a_policy_whose_rows_depend_on_each_other_is_worse_and_exact_only_where_each_row_is_run_alone(
    store: Store,
) -> None:
    sociable = store.load("sociable")
    assert certificate_of(sociable).batch == "worse"
    # What is left in the rows that pad the shape takes part in the mean.
    assert certificate_of(sociable, strict_rows=4).batch == "worse"
    assert certificate_of(sociable, strict_rows=1).batch == "exact"


@pytest.mark.parametrize("strict_rows", [1, 16, 64])
def test_the_policies_that_ship_are_exact_when_run_strictly(strict_rows: int) -> None:
    assert certificate_of(Store(STORE).load("highway-fast"), strict_rows).batch == "exact"


def test_a_certificate_meets_gates_no_better_than_itself() -> None:
    def made(batch: str) -> Certificate:
        return Certificate(batch, 0.0, 64, "golden pairs", [1])

    gates = ("any", "within 1e-6", "exact")
    assert [made("exact").meets(gate) for gate in gates] == [True, True, True]
    assert [made("within 1e-6").meets(gate) for gate in gates] == [True, True, False]
    assert [made("worse").meets(gate) for gate in gates] == [True, False, False]
    assert made("worse").shortfall("any") == ""
    assert made("worse").shortfall("exact").startswith("batch certificate: expected exact, got worse: ")


def test_an_output_that_is_not_finite_is_refused(store: Store) -> None:
    spec = store.load("rounded").card.spec()
    engine = OnnxEngine(model_of("Log", 13), spec, [], ROWS_MAX)
    with pytest.raises(EngineError, match="output 'action': expected finite numbers, got a NaN or an infinity"):
        certify(engine, spec, [], None, ROWS_MAX)
