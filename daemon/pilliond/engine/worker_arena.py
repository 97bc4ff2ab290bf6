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
        self._open: list[int] = []
        try:
            memory = self._own(os.memfd_create("pillion-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
            os.ftruncate(memory, layout.total_bytes)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
            self.complete = self._own(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            bell, self.submit = map(self._own, os.pipe2(os.O_CLOEXEC))
            os.set_blocking(self.submit, False)
            self.arena = Arena(memory, layout)
        except BaseException:
            self.close()
            raise
        self.for_worker = [memory, bell, self.complete]
        """Arena, submit and complete: what the worker gets."""
        self.arena.cells[VERSION] = LAYOUT_VERSION

    @property
    def is_open(self) -> bool:
        """Whether the doorbells are open."""
        return bool(self._open)

    def handed_over(self) -> None:
        """Closes what only the worker needs now. The mapping keeps the memory."""
        for descriptor in self.for_worker[:2]:
            self._open.remove(descriptor)
            os.close(descriptor)

    def close(self) -> None:
        """Closes the descriptors. Safe to repeat."""
        while self._open:
            os.close(self._open.pop())

    def _own(self, descriptor: int) -> int:
        self._open.append(descriptor)
        return descriptor
