"""The ONNX engine runs the shipped policies with any number of rows, and refuses a model that does not match its card."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from pillion_artifacts import Artifact, Store
from pillion_artifacts.card.model_card import Distribution
from pillion_protocol import Spec, TensorSpec
from pillion_worker.buckets import buckets_for
from pilliond.engine.interface import EngineError
from pilliond.engine.onnx import OnnxEngine
from pilliond.versions.loaded_version import Identity, Version
from tests.daemon.support.fakes import SPEC, CountingEngine
from tests.harness import STORE

POLICIES = Store(STORE).policies()


@pytest.fixture(scope="module")
def lander() -> Artifact:
    return Store(STORE).load("lunar-lander")


def test_buckets_are_powers_of_two_and_the_maximum() -> None:
    assert buckets_for(1) == [1]
    assert buckets_for(8) == [1, 2, 4, 8]
    assert buckets_for(20) == [1, 2, 4, 8, 16, 20]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_number_of_rows_returns_what_onnxruntime_returns(policy: str) -> None:
    artifact = Store(STORE).load(policy)
    spec = artifact.card.spec()
    engine = OnnxEngine(artifact.model, spec, [], rows_max=16)
    engine.warm_up()
    reference = onnxruntime.InferenceSession(artifact.model, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(3)
    tensor = spec.observation[0]
    for rows in range(1, 17):
        numbers = random.uniform(0, 1, (rows, *tensor.shape)) * (255 if tensor.dtype == "uint8" else 1)
        values = numbers.astype(tensor.dtype)
        engine.inputs[0].data.cast("B")[: values.nbytes] = values.tobytes()
        engine.runs[rows]()
        for output in spec.outputs:
            (expected,) = reference.run([output.name], {tensor.name: values})
            np.testing.assert_allclose(engine.outputs[output.name][:rows], expected, rtol=1e-4, atol=1e-5)


def test_rows_max_may_be_one(lander: Artifact) -> None:
    engine = OnnxEngine(lander.model, lander.card.spec(), [], rows_max=1)
    engine.runs[1]()
    assert engine.outputs["action"].shape == (1,)


def test_rows_left_from_a_larger_batch_do_not_change_a_smaller_one(lander: Artifact) -> None:
    engine = OnnxEngine(lander.model, lander.card.spec(), ["logits"], rows_max=8)
    engine.inputs[0][:] = np.random.default_rng(1).normal(size=(8, 8))
    engine.runs[8]()
    engine.runs[3]()
    first = engine.outputs["logits"][:3].copy()
    engine.inputs[0][3:] = 1e6
    engine.runs[3]()
    assert np.array_equal(first, engine.outputs["logits"][:3])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Spec([TensorSpec("image", "float32", [8])], [TensorSpec("action", "int64")]), "inputs are not the card's"),
        (Spec([TensorSpec("observation", "float32", [9])], [TensorSpec("action", "int64")]), "does not run"),
        (Spec([TensorSpec("observation", "float32", [8])], [TensorSpec("value", "float32")]), "no output 'value'"),
        (Spec([TensorSpec("observation", "float32", [8])], [TensorSpec("action", "float32")]), "expected float32"),
        (Spec([TensorSpec("observation", "float32", [8])], [TensorSpec("action", "int64", [2])]), r"\[2, 2\]"),
    ],
)
def test_a_model_that_does_not_match_its_card_is_refused(lander: Artifact, spec: Spec, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        OnnxEngine(lander.model, spec, [], rows_max=4)


def test_distribution_parameters_that_do_not_fit_the_action_are_refused(lander: Artifact) -> None:
    with pytest.raises(EngineError, match="output 'action' of two rows: expected floats, got int64"):
        OnnxEngine(lander.model, lander.card.spec(), ["action"], rows_max=4)
    engine = OnnxEngine(lander.model, lander.card.spec(), ["logits"], rows_max=4)
    identity = Identity("x", "1.0.0", bytes(32))
    with pytest.raises(EngineError, match="expected the shape of the action"):
        Version(identity, lander.card.spec(), Distribution("diagonal_gaussian", log_std="logits"), engine)
    with pytest.raises(EngineError, match=r"expected \[rows, n\]"):
        Version(identity, lander.card.spec(), Distribution("categorical", logits="action"), engine)


def test_bytes_that_are_not_a_model_are_refused(lander: Artifact) -> None:
    with pytest.raises(EngineError, match="cannot load"):
        OnnxEngine(b"not a model", lander.card.spec(), [], rows_max=4)


def test_a_spec_that_does_not_fit_into_a_welcome_is_refused(lander: Artifact) -> None:
    wide = TensorSpec("observation", "float32", [3], low=[0.0] * 10_000)
    with pytest.raises(EngineError, match="too large for a welcome"):
        Version(Identity("x", "1.0.0", bytes(32)), Spec([wide], SPEC.outputs), Distribution(), CountingEngine())
