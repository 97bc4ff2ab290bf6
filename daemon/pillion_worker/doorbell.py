"""Doorbells: eventfds that announce a batch to the worker, and its completion to the serving loop. Hot path.

A ring is a system call, so it also orders memory: whoever has counted a ring sees all that was written before it.
"""

from __future__ import annotations

import os
import platform
import sys
from typing import Final

_ONE: Final = (1).to_bytes(8, sys.byteorder)

CAN_SPIN: Final = platform.machine() in {"x86_64", "AMD64"}
"""Whether a store that a spinning reader sees means that it sees the stores before it too. Other processors reorder."""


def ring(descriptor: int) -> None:
    """Adds one ring."""
    os.write(descriptor, _ONE)


class Doorbell:
    """The side that counts rings. Owns nothing: its user closes the descriptor."""

    __slots__ = ("_buffer", "_buffers", "descriptor")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._buffer = bytearray(8)
        self._buffers = [self._buffer]

    def take(self) -> int:
        """Returns the rings since the last call, 0 if there are none.

        Never waits, even if the process at the other end switched the descriptor to blocking: they share its flags.
        """
        try:
            os.preadv(self.descriptor, self._buffers, -1, os.RWF_NOWAIT)
        except BlockingIOError:
            return 0
        return int.from_bytes(self._buffer, sys.byteorder)
