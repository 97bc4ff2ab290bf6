"""The allocator of the C library, which keeps memory that was freed."""

from __future__ import annotations

import ctypes

_libc = ctypes.CDLL(None)


def return_freed_memory() -> None:
    """Returns every page that was freed to the kernel. Does nothing where the C library is not glibc.

    glibc returns an array at once only if it is larger than every one that was freed before: of several large ones it keeps
    most, and such memory counts as resident for as long as the process lives.
    """
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(ctypes.c_size_t(0))
