"""Doorbells: a pipe announces each batch to the worker, an eventfd its completion to the serving loop. Hot path.

A ring is a system call, so it also orders memory: whoever has counted a ring sees all that was written before it.

Neither side of the serving loop can be made to wait. Both ends of an eventfd share one set of flags, so the other process
can switch it to blocking: reading it with `RWF_NOWAIT` does not care, but writing has no such flag. The two ends of a pipe
have flags of their own.
"""

from __future__ import annotations

import os
import platform
import sys
from typing import Final

from pillion_worker.limits import RINGS_MAX

_ONE: Final = (1).to_bytes(8, sys.byteorder)

CAN_SPIN: Final = platform.machine() in {"x86_64", "AMD64"}
"""Whether a store that a spinning reader sees means that it sees the stores before it too. Other processors reorder."""


def ring_worker(descriptor: int) -> bool:
    """Announces a batch: one byte. Returns False if there is no room for it; never waits.

    To a worker that is gone it says nothing, and that the worker is gone is seen elsewhere.
    """
    try:
        os.write(descriptor, b"\1")
    except BlockingIOError:
        return False
    except BrokenPipeError:
        return True
    return True


def wait_for_rings(descriptor: int) -> int:
    """Waits for rings of the serving process, and returns how many there were; 0 if it is gone."""
    return len(os.read(descriptor, RINGS_MAX))


def ring_loop(descriptor: int) -> None:
    """Announces that a batch is completed."""
    os.write(descriptor, _ONE)


class Doorbell:
    """The bell of the serving loop, which counts rings. Owns nothing: its user closes the descriptor."""

    __slots__ = ("_buffer", "_buffers", "descriptor")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._buffer = bytearray(8)
        self._buffers = [self._buffer]

    def take(self) -> int:
        """Returns the rings since the last call, 0 if there are none. Never waits."""
        try:
            os.preadv(self.descriptor, self._buffers, -1, os.RWF_NOWAIT)
        except BlockingIOError:
            return 0
        return int.from_bytes(self._buffer, sys.byteorder)
