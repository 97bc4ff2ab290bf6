"""The certifier: runs observations alone and in batches, and measures whether the batch changes an answer."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pillion_artifacts.card.drawn_texts import draw_texts
from pillion_artifacts.card.golden_pairs import Arrays, is_equal
from pillion_artifacts.card.model_card import StateCard
from pillion_protocol import Spec, TensorSpec
from pillion_worker.buckets import buckets_for
from pilliond.engine.interface import Array, Engine, EngineError
from pilliond.ipc.batch_certificate import CLOSE, EXACT, WORSE, Certificate
from pilliond.limits import CERTIFIED_OBSERVATIONS_MAX

_PADDED_QUARTERS: Final = 3
"""Each bucket is tried full, and filled to this many quarters, with old contents in the rest."""

_SEED: Final = 20_260_101
_SPREAD: Final = 3.0
_CLOSE_BOUND: Final = 1e-6


def certify(engine: Engine, spec: Spec, states: list[StateCard], golden: Arrays | None, rows_max: int) -> Certificate:
    """Runs observations alone and in shuffled batches of every bucket, full and padded, as the engine will run them.

    `golden` holds observations and states by name. Raises `EngineError`, also if an output is not finite. Overwrites the
    engine's buffers.
    """
    observations = _observations(spec, states, golden)
    count = len(observations[0])
    alone = _run_alone(engine, spec, states, observations, count)
    for name, output in alone.items():
        if output.dtype.kind == "f" and not np.isfinite(output).all():
            raise EngineError(f"output {name!r}: expected finite numbers, got a NaN or an infinity")
    random = np.random.default_rng(_SEED)
    difference = 0.0
    is_exact = True
    buckets = buckets_for(rows_max)
    for rows in [number for bucket in buckets for number in (bucket, max(1, bucket * _PADDED_QUARTERS // 4))]:
        chosen = random.permutation(np.arange(max(rows, count)) % count)[:rows]
        actual = _run(engine, spec, states, [array[chosen] for array in observations])
        for name, output in actual.items():
            is_exact = is_exact and output.tobytes() == alone[name][chosen].tobytes()
            difference = max(difference, _difference(output, alone[name][chosen]))
    batch = EXACT if is_exact else CLOSE if difference <= _CLOSE_BOUND else WORSE
    source = "golden pairs" if golden is not None else "drawn within the spec's bounds"
    return Certificate(batch, difference, count, source, buckets, engine.strict_rows)


def _run(engine: Engine, spec: Spec, states: list[StateCard], inputs: list[Array]) -> Arrays:
    rows = len(inputs[0])
    buffers = [*engine.inputs, *(before for before, _ in engine.states)]
    for buffer, array in zip(buffers, inputs, strict=True):
        buffer[:rows] = array
    engine.runs[rows]()
    actual = {tensor.name: engine.outputs[tensor.name][:rows].copy() for tensor in spec.outputs}
    for state, (_, after) in zip(states, engine.states, strict=True):
        actual[state.output] = after[:rows].copy()
    return actual


def _run_alone(engine: Engine, spec: Spec, states: list[StateCard], observations: list[Array], count: int) -> Arrays:
    rows = [_run(engine, spec, states, [array[row : row + 1] for array in observations]) for row in range(count)]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _difference(one: Array, other: Array) -> float:
    # A NaN on one side only counts as infinitely different; equal bits do not differ.
    apart = np.abs(one.astype(np.float64) - other.astype(np.float64))
    apart[is_equal(one, other)] = 0.0
    return float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0))


def _observations(spec: Spec, states: list[StateCard], golden: Arrays | None) -> list[Array]:
    """The observations to try, followed by the recurrent states that go with them."""
    if golden is not None:
        names = [tensor.name for tensor in spec.observation] + [state.name for state in states]
        return [golden[name][:CERTIFIED_OBSERVATIONS_MAX] for name in names]
    random = np.random.default_rng(_SEED)
    carried = [TensorSpec(state.name, state.dtype, state.shape) for state in states]
    return [_draw(tensor, random) for tensor in [*spec.observation, *carried]]


def _draw(tensor: TensorSpec, random: np.random.Generator) -> NDArray[np.generic]:
    """Draws observations within the bounds, where those are finite; or texts."""
    if tensor.is_text:
        return draw_texts(tensor.text_bytes_min, tensor.shape[0], CERTIFIED_OBSERVATIONS_MAX, random)
    shape = (CERTIFIED_OBSERVATIONS_MAX, *tensor.shape)
    dtype = np.dtype(tensor.dtype)
    low, high = (_bound(side, tensor.shape) for side in (tensor.low or [-np.inf], tensor.high or [np.inf]))
    if dtype.kind == "f":
        drawn = np.where(
            np.isfinite(low) & np.isfinite(high),
            np.nan_to_num(low, neginf=0.0) + random.random(shape) * (np.nan_to_num(high - low, posinf=0.0)),
            np.clip(random.standard_normal(shape) * _SPREAD, low, high),
        )
        return drawn.astype(dtype)
    top = 1 if dtype.kind == "b" else np.iinfo(dtype).max
    bottom = 0 if dtype.kind == "b" else np.iinfo(dtype).min
    first, last = np.maximum(low, bottom), np.minimum(high, top)
    return np.clip(np.floor(first + random.random(shape) * (last - first + 1.0)), first, last).astype(dtype)


def _bound(side: list[float], shape: list[int]) -> NDArray[np.float64]:
    return np.array(side, np.float64).reshape(shape if len(side) > 1 else ())
