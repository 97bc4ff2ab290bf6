"""Memory of a process: aligned buffers, and pages that are locked into it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from pillion_worker.arena import ALIGNMENT_BYTES
from pillion_worker.tensors import Array, LoadRequest, Tensor, TensorMemory


def aligned_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """As `np.zeros`, at an aligned address."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + ALIGNMENT_BYTES, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT_BYTES
    aligned: Array = memory[first : first + size].view(dtype).reshape(shape)
    return aligned


def private_memory(request: LoadRequest, outputs: Sequence[Tensor]) -> TensorMemory:
    """Memory of one batch for an engine that runs in this process. `outputs` are those that its graph really has."""

    def zeros(dtype: str, shape: Sequence[int]) -> Array:
        return aligned_zeros((request.room, *shape), dtype)

    return TensorMemory(
        [zeros(tensor.dtype, tensor.shape) for tensor in request.observation],
        {tensor.name: zeros(tensor.dtype, tensor.shape) for tensor in outputs},
        [(zeros(state.dtype, state.shape), zeros(state.dtype, state.shape)) for state in request.states],
    )


def lock_pages(memory: memoryview) -> bool:
    """Locks the pages into memory, so that no access waits for the kernel. Returns whether the host allowed it.

    Otherwise each page is read once: most of them then stay.
    """
    pages = np.frombuffer(memory, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlock(ctypes.c_void_p(pages.ctypes.data), ctypes.c_size_t(len(pages))) == 0:
        return True
    pages[::4_096].sum()
    return False
