"""Writes the folder that the store publishes: model, card and golden pairs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from pillion_artifacts.card.golden_pairs import Arrays, encode_golden
from pillion_artifacts.card.layers import CARD_NAME, GOLDEN_NAME, MODEL_NAME
from pillion_artifacts.card.model_card import ModelCard
from pillion_artifacts.card.yaml_card import dump_card
from pillion_artifacts.errors import InvalidSourceError
from pillion_artifacts.limits import PARITY_ROWS
from pillion_artifacts.publishing.common.draft import Draft
from pillion_artifacts.publishing.common.observations import draw_observations, play_environment
from pillion_artifacts.publishing.common.onnx_model import OnnxModel
from pillion_artifacts.publishing.common.parity import Parity, compare_models


class PublishReport(msgspec.Struct, frozen=True):
    """The written folder, and how well the model agrees with its source."""

    folder: str
    card: ModelCard
    model_bytes: int
    observations: str
    """The origin of the compared observations."""
    rows: int
    ties: int
    golden_rows: int
    differences: dict[str, float]


def write_folder(
    folder: Path, draft: Draft, observations: Arrays | None = None, *, plays: bool = False
) -> PublishReport:
    """Compares the draft's model with its source, then writes the folder, which need not exist.

    `observations` are real observations by name. Without them, plays the card's environment if `plays`, and otherwise
    draws observations. Raises `ParityError` before it writes anything if model and source differ.
    """
    model = OnnxModel(draft.model)
    given, origin = _observations(draft, model, observations, plays=plays)
    parity = compare_models(draft.source, model, draft.card, given)
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


def _observations(draft: Draft, model: OnnxModel, given: Arrays | None, *, plays: bool) -> tuple[Arrays, str]:
    cards = draft.card.observation
    if given is not None:
        missing = [card.name for card in cards if card.name not in given]
        if missing:
            raise InvalidSourceError(f"the observations: there is no {missing[0]!r}")
        return {card.name: given[card.name].astype(card.dtype) for card in cards}, "given"
    if plays and draft.card.environment is not None:
        state = {part.name: np.zeros((1, *part.shape), part.dtype) for part in draft.card.state}
        played = play_environment(
            draft.card.environment, cards, lambda row: model.run({**row, **state})["action"][0], PARITY_ROWS
        )
        return played, draft.card.environment.id
    drawn = draw_observations(cards, PARITY_ROWS)
    for name in draft.centres:
        spread = np.random.default_rng(PARITY_ROWS).standard_normal(drawn[name].shape) * draft.spreads[name]
        drawn[name] = (draft.centres[name] + spread).astype(drawn[name].dtype)
    return drawn, "drawn from the card's bounds"


def _write(folder: Path, draft: Draft, parity: Parity) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_NAME).write_bytes(draft.model)
    (folder / CARD_NAME).write_bytes(dump_card(draft.card))
    (folder / GOLDEN_NAME).write_bytes(encode_golden(parity.golden))
