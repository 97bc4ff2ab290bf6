"""Lets the disk write a large file while the rest of it is still hashed and copied: the last sync then finds little to do."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from pillion_artifacts.limits import EARLY_SYNC_BYTES


class EarlySync:
    """Syncs a file that is being written, at most once at a time, in a thread of its own. The caller owns the descriptor.

    Leaving the block waits for the thread.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._thread: ThreadPoolExecutor | None = None
        self._running: Future[None] | None = None
        self._unsynced = 0

    def wrote(self, count: int) -> None:
        """Notes that bytes were written. Raises `OSError` if the disk did not take earlier ones."""
        self._unsynced += count
        if self._unsynced < EARLY_SYNC_BYTES or (self._running is not None and not self._running.done()):
            return
        self._finish()
        self._unsynced = 0
        self._thread = self._thread or ThreadPoolExecutor(1, "early-sync")
        self._running = self._thread.submit(os.fdatasync, self._descriptor)

    def sync(self) -> None:
        """Waits until all of the file is on the disk. Raises `OSError`."""
        # The kernel tells of a failed write once: it may have told the thread.
        self._finish()
        os.fsync(self._descriptor)

    def _finish(self) -> None:
        if self._running is not None:
            self._running.result()
            self._running = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown()
