"""Aligned memory: a run of a graph whose tensors all lie at addresses that no kernel tells apart. Hot path.

Kernels that sum or map an array with vector instructions may take its elements one by one up to the next aligned address,
and round those otherwise: the same row at another address gives another answer in the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnxruntime

from pilliond.engine.interface import Array

ALIGNMENT_BYTES: Final = 64
"""A line of the cache, and the widest vector register."""


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    """As `np.zeros`, at an aligned address."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + ALIGNMENT_BYTES, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT_BYTES
    aligned: Array = memory[first : first + size].view(dtype).reshape(shape)
    return aligned


class Piece:
    """Rows that are run together: the binding, and what must be copied `before` and `after` (to, from).

    `read` and `written` hold the rows of each tensor by name. One whose address is not aligned is run in `scratch`, which
    has memory for each name; without one it is run where it is.
    """

    __slots__ = ("after", "before", "binding")

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        read: Mapping[str, Array],
        written: Mapping[str, Array],
        scratch: Mapping[str, Array],
    ) -> None:
        self.binding = session.io_binding()
        self.before: list[tuple[Array, Array]] = []
        self.after: list[tuple[Array, Array]] = []
        for name, array in read.items():
            target = _aligned_or_scratch(name, array, scratch)
            if target is not array:
                self.before.append((target, array))
            self.binding.bind_input(name, "cpu", 0, target.dtype, list(target.shape), target.ctypes.data)
        for name, array in written.items():
            target = _aligned_or_scratch(name, array, scratch)
            if target is not array:
                self.after.append((array, target))
            self.binding.bind_output(name, "cpu", 0, target.dtype, list(target.shape), target.ctypes.data)


def _aligned_or_scratch(name: str, array: Array, scratch: Mapping[str, Array]) -> Array:
    return array if array.ctypes.data % ALIGNMENT_BYTES == 0 or name not in scratch else scratch[name]
