"""Train-serve parity: runs source and model on the same observations, and keeps some of the pairs."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pillion_artifacts.card.golden_pairs import Arrays, Golden, compare
from pillion_artifacts.card.model_card import ModelCard
from pillion_artifacts.errors import ParityError
from pillion_artifacts.limits import GOLDEN_KEPT_BYTES_MAX, GOLDEN_ROWS_MAX, PARITY_STEPS
from pillion_artifacts.publishing.common.served_model import ServedModel
from pillion_artifacts.publishing.common.source_policy import SourcePolicy


class Parity(msgspec.Struct, frozen=True):
    """The result of a comparison."""

    rows: int
    """The number of compared rows."""
    ties: int
    """The number of skipped rows: two actions were equally good, so rounding would choose."""
    differences: dict[str, float]
    """The greatest absolute difference of each output."""
    golden: Golden
    """The kept rows."""


class Pairs(msgspec.Struct, frozen=True):
    """What the source answered, without the rows that rounding decides."""

    golden: Golden
    ties: int


def run_source(source: SourcePolicy, card: ModelCard, observation: Arrays) -> Pairs:
    """Runs the source on all rows. Raises `ParityError` if nothing it answers can be compared."""
    pairs, margin = _run_source(source, card, observation)
    is_tie = _ties(margin, card, len(margin) if margin is not None else 0)
    if margin is not None and is_tie.all():
        raise ParityError("every observation is a tie between actions: nothing can be compared")
    kept = pairs if margin is None else _rows(pairs, np.flatnonzero(~is_tie))
    _check_is_number(kept.outputs)
    return Pairs(kept, int(is_tie.sum()))


def compare_model(pairs: Pairs, model: ServedModel, card: ModelCard) -> Parity:
    """Runs the model on the same rows. Raises `ParityError` if an output differs by more than the card's tolerance."""
    kept = pairs.golden
    actual = model.run(kept.inputs)
    differences = {
        name: compare(name, expected, actual[name], card.tolerance.of(name)) for name, expected in kept.outputs.items()
    }
    return Parity(kept.rows, pairs.ties, differences, _golden_part(kept))


def _check_is_number(outputs: Arrays) -> None:
    """Raises `ParityError` for NaN. Infinities are allowed: a forbidden action may have the logit -inf."""
    for name, values in outputs.items():
        if values.dtype.kind == "f" and np.isnan(values).any():
            row = int(np.argwhere(np.isnan(values))[0][0])
            raise ParityError(
                f"output {name!r}, row {row}: the source itself returns NaN: expected observations that it was trained on (--env, --observations)"
            )


def _run_source(
    source: SourcePolicy, card: ModelCard, observation: Arrays
) -> tuple[Golden, NDArray[np.float64] | None]:
    """Runs the source on all rows. With state, the rows are steps of several episodes, run one step after the other."""
    rows = len(next(iter(observation.values())))
    steps = PARITY_STEPS if card.state else 1
    episodes = rows // steps
    state = {part.name: np.zeros((episodes, *part.shape), part.dtype) for part in card.state}
    inputs, outputs, margins = [], [], []
    for step in range(steps):
        chosen = {name: values[step * episodes : (step + 1) * episodes] for name, values in observation.items()}
        inputs_of_step = {**chosen, **state}
        actual = source.run(inputs_of_step)
        state = {part.name: actual.outputs[part.output] for part in card.state}
        inputs.append(inputs_of_step)
        outputs.append(actual.outputs)
        margins.append(actual.margin)
    joined = [margin for margin in margins if margin is not None]
    return Golden(_join(inputs), _join(outputs)), np.concatenate(joined) if joined else None


def _join(parts: list[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _ties(margin: NDArray[np.float64] | None, card: ModelCard, rows: int) -> NDArray[np.bool_]:
    """The rows where the best two actions are within the tolerance."""
    if margin is None:
        return np.zeros(rows, np.bool_)
    return margin <= 2 * (card.tolerance.absolute + card.tolerance.relative)


def _rows(golden: Golden, chosen: NDArray[Any]) -> Golden:
    return Golden(
        {name: values[chosen] for name, values in golden.inputs.items()},
        {name: values[chosen] for name, values in golden.outputs.items()},
    )


def _golden_part(pairs: Golden) -> Golden:
    """The rows to keep: spread over all rows, within the limits on rows and bytes."""
    row_bytes = sum(values[0].nbytes for values in [*pairs.inputs.values(), *pairs.outputs.values()])
    count = max(1, min(GOLDEN_ROWS_MAX, pairs.rows, GOLDEN_KEPT_BYTES_MAX // max(1, row_bytes)))
    spread = np.unique(np.linspace(0, pairs.rows - 1, count).astype(np.int64))
    return _rows(pairs, spread)
