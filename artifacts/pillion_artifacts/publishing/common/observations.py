"""Observations for comparing source and model: drawn from the card's bounds, or collected in the environment."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pillion_artifacts.card.drawn_texts import draw_texts
from pillion_artifacts.card.golden_pairs import Arrays
from pillion_artifacts.card.model_card import Environment, TensorCard
from pillion_artifacts.errors import InvalidSourceError
from pillion_artifacts.limits import DRAWN_BOUND_MAX
from pillion_protocol import LocalProtocolError
from pillion_protocol.specs import TEXT
from pillion_protocol.texts import encode_text

_SEED: Final = 7
_WHITE: Final = 255
"""The highest value of a pixel."""

Act = Callable[[Arrays], NDArray[Any]]
"""Maps one row of observations by name to its action."""


def draw_observations(cards: list[TensorCard], rows: int, seed: int = _SEED) -> Arrays:
    """Draws `rows` rows of each observation: uniform within bounds, normal without bounds, or texts.

    A seed fixes the result.
    """
    generator = np.random.default_rng(seed)
    return {card.name: _draw(card, rows, generator) for card in cards}


def _draw(card: TensorCard, rows: int, generator: np.random.Generator) -> NDArray[Any]:
    if card.space == TEXT:
        return draw_texts(card.text_bytes_min, card.shape[0], rows, generator)
    shape = (rows, *card.shape)
    dtype = np.dtype(card.dtype)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    low, high = _bounds(card, dtype)
    if dtype.kind in "iu":
        return generator.integers(low.astype(np.int64), high.astype(np.int64), shape, endpoint=True).astype(dtype)
    is_bounded = (np.abs(low) <= DRAWN_BOUND_MAX) & (np.abs(high) <= DRAWN_BOUND_MAX)
    uniform = generator.uniform(np.where(is_bounded, low, 0.0), np.where(is_bounded, high, 1.0), shape)
    return np.where(is_bounded, uniform, generator.standard_normal(shape)).astype(dtype)


def _bounds(card: TensorCard, dtype: np.dtype[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    size = math.prod(card.shape)
    is_integer = dtype.kind in "iu"
    least, most = (0.0, float(min(_WHITE, np.iinfo(dtype).max))) if is_integer else (-math.inf, math.inf)

    def shaped(bound: list[float], otherwise: float) -> NDArray[np.float64]:
        return np.broadcast_to(np.asarray(bound or [otherwise], np.float64), (size,)).reshape(card.shape)

    return shaped(card.low, least), shaped(card.high, most)


def play_environment(
    environment: Environment, cards: list[TensorCard], act: Act, rows: int, seed: int = _SEED
) -> Arrays:
    """Collects `rows` observations of episodes that `act` plays. Raises `InvalidSourceError` if their shapes are wrong."""
    from pillion_artifacts.card.environments import make_environment

    collected: dict[str, list[NDArray[Any]]] = {card.name: [] for card in cards}
    played = make_environment(environment)
    try:
        observation, _ = played.reset(seed=seed)
        for _ in range(rows):
            row = _row(observation, cards, environment.id)
            for name, values in row.items():
                collected[name].append(values[0])
            observation, _, terminated, truncated, _ = played.step(_to_space(played.action_space, act(row)))
            if terminated or truncated:
                observation, _ = played.reset()
    finally:
        played.close()
    return {name: np.stack(values) for name, values in collected.items()}


def _row(observation: Any, cards: list[TensorCard], environment: str) -> Arrays:
    by_name = observation if isinstance(observation, dict) else {cards[0].name: observation}
    row: Arrays = {}
    for card in cards:
        value = by_name.get(card.name)
        values = _encoded(value, card, environment) if isinstance(value, str) else np.asarray(value)
        if list(values.shape) != list(card.shape):
            raise InvalidSourceError(
                f"{environment}: observation {card.name!r}: expected shape {list(card.shape)}, got {list(values.shape)}"
            )
        row[card.name] = values.astype(card.dtype)[None]
    return row


def _encoded(text: str, card: TensorCard, environment: str) -> NDArray[Any]:
    """The row of a text, from a Gymnasium space `Text`."""
    if card.space != TEXT:
        raise InvalidSourceError(f"{environment}: observation {card.name!r}: expected a {card.space}, got a text")
    try:
        return np.frombuffer(encode_text(text, card.text_bytes_min, card.shape[0]), np.uint8)
    except LocalProtocolError as error:
        raise InvalidSourceError(f"{environment}: observation {card.name!r}: {error}") from None


def _to_space(space: Any, action: NDArray[Any]) -> Any:
    # Gymnasium's Discrete expects a number, not a zero-dimensional array
    return action.item() if action.ndim == 0 else action.astype(space.dtype)
