"""Writes the folder that the store publishes: model, card and golden pairs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from pillion_artifacts.card.golden_pairs import Arrays, encode_golden
from pillion_artifacts.card.layers import CARD_NAME, GOLDEN_NAME, MODEL_NAMES, model_name
from pillion_artifacts.card.model_card import ModelCard
from pillion_artifacts.card.yaml_card import dump_card
from pillion_artifacts.errors import InvalidSourceError
from pillion_artifacts.limits import LARGE_MODEL_BYTES, PARITY_ROWS, PARITY_ROWS_OF_LARGE
from pillion_artifacts.publishing.common.draft import Draft
from pillion_artifacts.publishing.common.observations import draw_observations, play_environment
from pillion_artifacts.publishing.common.parity import Parity, compare_model, run_source
from pillion_artifacts.publishing.common.served_model import ServedModel, open_model
from pillion_artifacts.publishing.common.source_policy import SourcePolicy, SourceRun, margin_of


class PublishReport(msgspec.Struct, frozen=True):
    """The written folder, and how well the model agrees with its source."""

    folder: str
    card: ModelCard
    model_bytes: int
    observations: str
    """The origin of the compared observations."""
    rows: int = 0
    ties: int = 0
    golden_rows: int = 0
    differences: dict[str, float] = {}
    unproven: str = ""
    """Why nothing was compared, and there are no golden pairs; empty: something was."""


class ServedSource:
    """A model as its own source, where nothing else runs it. Each row runs alone.

    The model then runs in batches. So a policy whose answer for a row depends on the other rows differs from its source.
    """

    def __init__(self, model: ServedModel, logits: str) -> None:
        self._model = model
        self._logits = logits

    def run(self, inputs: Arrays) -> SourceRun:
        rows = len(next(iter(inputs.values())))
        alone = [
            self._model.run({name: values[row : row + 1] for name, values in inputs.items()}) for row in range(rows)
        ]
        outputs = {name: np.concatenate([made[name] for made in alone]) for name in alone[0]}
        return SourceRun(outputs, margin_of(outputs[self._logits]) if self._logits else None)


def write_folder(
    folder: Path, draft: Draft, observations: Arrays | None = None, *, plays: bool = False
) -> PublishReport:
    """Compares the draft's model, on the engine that will serve it, with its source, then writes the folder.

    The folder need not exist. `observations` are real observations by name. Without them, plays the card's environment if
    `plays`, and otherwise draws observations. Raises `ParityError` before it writes anything if model and source differ.
    """
    if draft.unproven:
        _write(folder, draft, None)
        return PublishReport(str(folder), draft.card, len(draft.model), "none", unproven=draft.unproven)
    with contextlib.ExitStack() as opened:
        # opened when it is needed: until then, only the source is in memory
        served = functools.cache(
            lambda: opened.enter_context(contextlib.closing(open_model(draft.model, draft.card, draft.allowed_code)))
        )
        given, origin = _observations(draft, served, observations, plays=plays)
        source: SourcePolicy = draft.source or ServedSource(served(), draft.card.distribution.logits)
        pairs = run_source(source, draft.card, given)
        draft.release()
        parity = compare_model(pairs, served(), draft.card)
    _write(folder, draft, parity)
    return PublishReport(
        folder=str(folder),
        card=draft.card,
        model_bytes=len(draft.model),
        observations=origin,
        rows=parity.rows,
        ties=parity.ties,
        golden_rows=parity.golden.rows,
        differences=parity.differences,
    )


def _observations(
    draft: Draft, served: Callable[[], ServedModel], given: Arrays | None, *, plays: bool
) -> tuple[Arrays, str]:
    cards = draft.card.observation
    rows = PARITY_ROWS if len(draft.model) < LARGE_MODEL_BYTES else PARITY_ROWS_OF_LARGE
    if given is not None:
        missing = [card.name for card in cards if card.name not in given]
        if missing:
            raise InvalidSourceError(f"the observations: there is no {missing[0]!r}")
        return {card.name: given[card.name].astype(card.dtype) for card in cards}, "given"
    if plays and draft.card.environment is not None:
        state = {part.name: np.zeros((1, *part.shape), part.dtype) for part in draft.card.state}
        played = play_environment(
            draft.card.environment, cards, lambda row: served().run({**row, **state})["action"][0], rows
        )
        return played, draft.card.environment.id
    drawn = draw_observations(cards, rows)
    for name in draft.centres:
        spread = np.random.default_rng(PARITY_ROWS).standard_normal(drawn[name].shape) * draft.spreads[name]
        drawn[name] = (draft.centres[name] + spread).astype(drawn[name].dtype)
    return drawn, "drawn from the card's bounds"


def _write(folder: Path, draft: Draft, parity: Parity | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # what an earlier run left here is of another model
    for name in (*MODEL_NAMES.values(), GOLDEN_NAME):
        (folder / name).unlink(missing_ok=True)
    (folder / model_name(draft.card.engine.kind)).write_bytes(draft.model)
    (folder / CARD_NAME).write_bytes(dump_card(draft.card))
    if parity is not None:
        (folder / GOLDEN_NAME).write_bytes(encode_golden(parity.golden))
