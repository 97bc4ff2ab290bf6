"""The serving side's end of an arena: makes it, and owns its doorbells."""

from __future__ import annotations

import fcntl
import os
from typing import Final

from pillion_worker.arena import LAYOUT_VERSION, VERSION, Arena, ArenaLayout

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class OwnArena:
    """A mapped arena and both of its doorbells. Owns the descriptors; the memory goes with the last view of it."""

    def __init__(self, layout: ArenaLayout) -> None:
        """Raises `OSError` or `OverflowError` if there is no memory or no descriptor for it."""
        self.descriptors: list[int] = []
        """Arena, submit and complete: what the worker gets. After `forget_memory` the last two."""
        try:
            self._add(os.memfd_create("pillion-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
            os.ftruncate(self.descriptors[0], layout.total_bytes)
            fcntl.fcntl(self.descriptors[0], fcntl.F_ADD_SEALS, _SEALS)
            self.submit = self._add(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            self.complete = self._add(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            self.arena = Arena(self.descriptors[0], layout)
        except BaseException:
            self.close()
            raise
        self.arena.cells[VERSION] = LAYOUT_VERSION

    def forget_memory(self) -> None:
        """Closes the memfd, once the worker has it: the mapping keeps one of its own."""
        os.close(self.descriptors.pop(0))

    def close(self) -> None:
        """Closes the descriptors. Safe to repeat."""
        while self.descriptors:
            os.close(self.descriptors.pop())

    def _add(self, descriptor: int) -> int:
        self.descriptors.append(descriptor)
        return descriptor
