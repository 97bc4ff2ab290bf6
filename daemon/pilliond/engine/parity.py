"""Train–serve parity at load: runs the golden pairs of an artifact on the engine that will serve."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pillion_artifacts import InvalidArtifactError
from pillion_artifacts.card.golden_pairs import Arrays, check_golden, decode_golden
from pillion_artifacts.card.model_card import StateCard, Tolerance
from pillion_protocol import Spec, TensorSpec
from pilliond.engine.checks.integer_ranges import first_outside, integer_ranges
from pilliond.engine.checks.text_rows import first_bad_text
from pilliond.engine.interface import Engine, EngineError


def check_parity(
    engine: Engine,
    spec: Spec,
    states: list[StateCard],
    golden: bytes,
    tolerance: Tolerance,
    rows_max: int,
) -> None:
    """Raises `EngineError` if the engine's answers differ from those of the policy's source: output, row, difference.

    Of an engine with replicas, each that is ready must give those answers. `golden` is the artifact's safetensors file.
    Overwrites the engine's buffers. Nothing runs if a golden observation is out of its bounds or no text: the engine may
    not survive it, and no session could send it.
    """

    engines: list[Engine] = [replica for replica in engine.replicas if replica.is_ready]
    try:
        pairs = decode_golden(golden)
        _check_inputs([*spec.observation, *states], pairs.inputs)
        _check_bounds(spec, pairs.inputs)
        for each in engines or [engine]:
            check_golden(partial(_run, each, spec, states), pairs, tolerance, rows_max)
    except InvalidArtifactError as error:
        raise EngineError(str(error)) from None


def _run(engine: Engine, spec: Spec, states: list[StateCard], inputs: Arrays) -> Arrays:
    rows = len(next(iter(inputs.values())))
    for tensor, buffer in zip(spec.observation, engine.inputs, strict=True):
        buffer[:rows] = inputs[tensor.name]
    for state, (before, _) in zip(states, engine.states, strict=True):
        before[:rows] = inputs[state.name]
    engine.runs[rows]()
    actual = {name: buffer[:rows].copy() for name, buffer in engine.outputs.items()}
    for state, (_, after) in zip(states, engine.states, strict=True):
        actual[state.output] = after[:rows].copy()
    return actual


def _check_inputs(expected: Sequence[TensorSpec | StateCard], inputs: Arrays) -> None:
    for tensor in expected:
        actual = inputs.get(tensor.name)
        if actual is None or actual.dtype != tensor.dtype or list(actual.shape[1:]) != list(tensor.shape):
            described = "none" if actual is None else f"{actual.dtype} {list(actual.shape[1:])}"
            raise InvalidArtifactError(
                f"golden pairs: input {tensor.name!r}: expected rows of {tensor.dtype} {list(tensor.shape)}, got {described}"
            )


def _check_bounds(spec: Spec, inputs: Arrays) -> None:
    observed = [inputs[tensor.name] for tensor in spec.observation]
    outside = first_outside(integer_ranges(spec.observation), observed)
    if outside is not None:
        raise InvalidArtifactError(
            f"golden pairs: observation {outside.name!r}: expected {outside.low} to {outside.high}, "
            f"got {outside.value} in row {outside.row}"
        )
    bad = first_bad_text(spec.observation, observed)
    if bad is not None:
        raise InvalidArtifactError(
            f"golden pairs: observation {bad.name!r}: expected {bad.fault.expected}, got {bad.fault.actual} in row {bad.row}"
        )
