"""Where a model's bytes are: in memory already, or in a sealed memfd, which is read where it lies instead of copied."""

from __future__ import annotations

import io
import mmap
import os
from typing import BinaryIO, Union

Model = Union[bytes, str]
"""The bytes of a model, or the path that `path_of` returns."""


def path_of(descriptor: int) -> str:
    """Returns a path to an open file of this process, for as long as it is open. Nobody can change a sealed memfd."""
    return f"/proc/self/fd/{descriptor}"


def open_model(model: Model) -> BinaryIO:
    """Opens a model for reading; the caller closes it. Raises `OSError`."""
    return io.BytesIO(model) if isinstance(model, bytes) else open(model, "rb")


def view_of(model: Model) -> memoryview:
    """Returns the bytes of a model, read-only; those of a file are mapped. Raises `OSError`."""
    if isinstance(model, bytes):
        return memoryview(model)
    if size_of(model) == 0:
        return memoryview(b"")
    with open(model, "rb") as file:
        # A library that writes to it all the same gets copies of the pages, not a signal.
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)).toreadonly()


def size_of(model: Model) -> int:
    """Returns the size of a model in bytes. Raises `OSError`."""
    return len(model) if isinstance(model, bytes) else os.stat(model).st_size
