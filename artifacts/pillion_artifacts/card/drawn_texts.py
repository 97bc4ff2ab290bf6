"""Texts to try a policy with where nobody gave any: words of several alphabets, of every length that the card allows."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pillion_protocol.texts import encode_text

_WORDS: Final = (
    *("pick up the cup", "move", "left", "right", "stop", "place it in the drawer", "open", "slowly", "x", "12"),
    *("größer", "déjà", "вперёд", "箱を開けて", "停", "🤖"),
)


def draw_texts(bytes_min: int, bytes_max: int, rows: int, generator: np.random.Generator) -> NDArray[Any]:
    """Draws texts as the rows of a text observation: uint8 [rows, bytes_max], each UTF-8 and then zero bytes.

    Their lengths are uniform from `bytes_min` to `bytes_max`.
    """
    lengths = generator.integers(bytes_min, bytes_max, rows, endpoint=True)
    encoded = [encode_text(_text(int(length), generator), bytes_min, bytes_max) for length in lengths]
    return np.frombuffer(b"".join(encoded), np.uint8).reshape(rows, bytes_max).copy()


def _text(length: int, generator: np.random.Generator) -> str:
    """A text of exactly `length` bytes."""
    words: list[str] = []
    size = 0
    while size < length:
        words.append(_WORDS[generator.integers(len(_WORDS))])
        size += len(words[-1].encode()) + 1
    text = " ".join(words).encode()[:length].decode(errors="ignore")
    return text + "." * (length - len(text.encode()))
