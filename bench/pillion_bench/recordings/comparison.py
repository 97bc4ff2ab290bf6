"""Compares the actions of a replay with the recorded ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pillion.conversation import Frames
from pillion_artifacts.card.model_card import Tolerance
from pillion_bench.recordings.recording import Recording
from pillion_protocol import Spec


def compare(recording: Recording, spec: Spec, answers_of_session: list[list[Frames]]) -> tuple[int, str]:
    """Returns how many acts had an output that differs from the recorded one, and a text about the first ("": none).

    `answers_of_session` has for each session the output tensors of each act, in step order. Integers must be equal;
    floating-point numbers may differ by the recording's tolerance.
    """
    mismatches = 0
    first = ""
    for index, answers in enumerate(answers_of_session):
        differs = np.zeros(recording.steps, dtype=bool)
        for position, tensor in enumerate(spec.outputs):
            expected = recording.action.get(tensor.name)
            if expected is None:
                continue
            actual = _stacked(answers, position, np.dtype(tensor.dtype), tensor.shape)
            wrong = differing_steps(expected, actual, recording.tolerance)
            if wrong.any() and not first:
                step = int(np.argmax(wrong))
                first = f"session {index}, step {step}, {tensor.name}: expected {expected[step]}, got {actual[step]}"
            differs |= wrong
        mismatches += int(differs.sum())
    return mismatches, first


def differing_steps(expected: NDArray[Any], actual: NDArray[Any], tolerance: Tolerance) -> NDArray[np.bool_]:
    """Returns bool [steps]: whether any element differs by more than absolute + relative * |expected|."""
    if expected.shape != actual.shape:
        return np.ones(len(expected), dtype=bool)
    if expected.dtype.kind == "f":
        alike = np.isclose(actual, expected, rtol=tolerance.relative, atol=tolerance.absolute, equal_nan=True)
    else:
        alike = actual == expected
    differing: NDArray[np.bool_] = ~alike.reshape(len(expected), -1).all(axis=1)
    return differing


def _stacked(answers: list[Frames], position: int, dtype: np.dtype[Any], shape: list[int]) -> NDArray[Any]:
    data = b"".join(bytes(frames[position]) for frames in answers)
    return np.frombuffer(data, dtype.newbyteorder("<")).reshape(len(answers), *shape)
