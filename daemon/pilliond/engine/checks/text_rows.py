"""The check that the rows of a text observation hold text: UTF-8, then zero bytes, long enough for the card. Hot path.

Only policies that observe text come here.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pillion_protocol import TensorSpec
from pillion_protocol.texts import TextFault, fault_of_text
from pilliond.limits import TEXT_ROWS_KEPT_BYTES_MAX

_FEW: Final = 4
"""Up to so many rows are checked one by one. More are checked together, which takes as long as six rows of 64 bytes, and for 64
rows an eighth of the time."""

_CONTINUES_FIRST: Final = 0x80
_CONTINUES_LAST: Final = 0xBF


class BadText(msgspec.Struct, frozen=True):
    """A row that holds no text."""

    name: str
    row: int
    fault: TextFault


class TextRows:
    """The rows of one text observation in the memory of a batch.

    `array` is the uint8 array [rows_max, bytes_max] that the batch gathers its rows in.
    """

    __slots__ = ("_bytes_min", "_data", "_row_bytes", "_sound")

    def __init__(self, tensor: TensorSpec, array: NDArray[Any]) -> None:
        self._bytes_min = tensor.text_bytes_min
        self._row_bytes = tensor.row_bytes
        self._data = array.data.cast("B")
        self._sound = b""
        """The newest rows that were found to hold text."""

    def is_text(self, rows: int) -> bool:
        """Whether each of the first `rows` rows holds text."""
        data = self._data[: rows * self._row_bytes].tobytes()
        # Prompts rarely change from step to step, and to compare takes a fraction of the time.
        if self._sound.startswith(data):
            return True
        if not are_texts(data, self._row_bytes, self._bytes_min):
            return False
        if len(data) <= TEXT_ROWS_KEPT_BYTES_MAX:
            self._sound = data
        return True


def are_texts(data: bytes, row_bytes: int, bytes_min: int) -> bool:
    """Whether `data` is rows of `row_bytes` bytes that each hold a text of at least `bytes_min` bytes."""
    if len(data) <= _FEW * row_bytes:
        rows = range(0, len(data), row_bytes)
        return all(fault_of_text(data[first : first + row_bytes], bytes_min) is None for first in rows)
    array = np.frombuffer(data, np.uint8).reshape(-1, row_bytes)
    if bytes_min and not array[:, bytes_min - 1].all():
        return False
    is_used = array != 0
    if (is_used[:, 1:] > is_used[:, :-1]).any():
        return False
    # Rows that follow one another are UTF-8 together if each is, and if none begins within a character.
    begins = array[:, 0]
    if ((begins >= _CONTINUES_FIRST) & (begins <= _CONTINUES_LAST)).any():
        return False
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def first_bad_text(spec: list[TensorSpec], inputs: list[NDArray[Any]]) -> BadText | None:
    """The first row of `inputs` (shape [rows, …] each) that should hold text and does not; None if there is none."""
    for tensor, array in zip(spec, inputs, strict=True):
        if not tensor.is_text:
            continue
        for row, values in enumerate(array):
            fault = fault_of_text(values.tobytes(), tensor.text_bytes_min)
            if fault is not None:
                return BadText(tensor.name, row, fault)
    return None
