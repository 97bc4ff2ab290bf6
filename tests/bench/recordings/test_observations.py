"""The load sends observations that fit the policy's spec."""

from __future__ import annotations

import numpy as np

from pillion_bench.recordings.observations import Observations, drawn_observations, real_observations
from pillion_protocol import Spec, TensorSpec
from pillion_protocol.texts import fault_of_text

OUTPUTS = [TensorSpec("action", "int64")]
SPEC = Spec(
    observation=[
        TensorSpec("near", "float32", [2], low=[-1.0, 5.0], high=[1.0, 6.0]),
        TensorSpec("free", "float64", [3]),
        TensorSpec("image", "uint8", [4, 4]),
        TensorSpec("gear", "int64", [], "Discrete", [1.0], [5.0]),
        TensorSpec("lit", "bool", [2], "MultiBinary"),
        TensorSpec("prompt", "uint8", [12], "Text", [1.0]),
    ],
    outputs=OUTPUTS,
)


def test_random_observations_are_within_the_spec() -> None:
    observations = drawn_observations(SPEC)
    near, free, image, gear, lit, prompt = observations.arrays(0, 200)
    for array, tensor in zip((near, free, image, gear, lit, prompt), SPEC.observation, strict=True):
        assert array.dtype == tensor.dtype
        assert list(array.shape) == [200, *tensor.shape]
    assert (np.abs(near[:, 0]) <= 1).all()
    assert ((near[:, 1] >= 5) & (near[:, 1] <= 6)).all()
    assert np.isfinite(free).all()
    assert set(gear.tolist()) <= {1, 2, 3, 4, 5}
    assert all(fault_of_text(row.tobytes(), 1) is None for row in prompt)
    assert observations.source == "drawn from the spec's bounds"


def test_frames_have_the_length_that_the_wire_requires() -> None:
    frames = drawn_observations(SPEC).frames(3, 7)
    assert [len(frame) for frame in frames] == [7 * tensor.row_bytes for tensor in SPEC.observation]


def test_after_the_last_row_comes_the_first() -> None:
    observations = Observations([np.arange(5)], "counted")
    assert observations.arrays(3, 4)[0].tolist() == [3, 4, 0, 1]


def test_a_policy_without_a_recording_gets_random_observations() -> None:
    assert real_observations("no-such-policy", SPEC).source == "drawn from the spec's bounds"
