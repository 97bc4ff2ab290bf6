"""Aligned memory: runs a graph with all tensors at equally aligned addresses. Hot path.

Vectorised kernels may process elements one by one up to the next aligned address, and round those differently. The same
row at another address then gives another answer in the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import onnxruntime
from numpy.typing import DTypeLike

from pilliond.engine.interface import Array

ALIGNMENT_BYTES: Final = 64
"""A cache line, and the widest vector register."""


def aligned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """As `np.zeros`, at an aligned address."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + ALIGNMENT_BYTES, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT_BYTES
    aligned: Array = memory[first : first + size].view(dtype).reshape(shape)
    return aligned


class Piece:
    """Rows that run together: the binding, and the copies to make `before` and `after` it (to, from).

    `read` and `written` hold the rows of each tensor by name. A tensor at an unaligned address runs in `scratch`, if that
    has memory for its name; otherwise it runs in place.
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
